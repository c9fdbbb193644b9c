/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TARGETS_KINDS_H
#define TARGETS_KINDS_H

typedef unsigned long word;

/* x -> x * 13 + 7 */
word kind_leaf(word x);
word kind_exits(word x);
word kind_recursive(word n);
word kind_left(word n);
word kind_right(word n);
word kind_loop(word n);
void kind_void(word x, word *result);
word kind_many(word a, word b, word c, word d, word e, word f, word g, word h);
double kind_float(double a, float b);
/* Calls all of them. */
word kind_root(word x);

#endif

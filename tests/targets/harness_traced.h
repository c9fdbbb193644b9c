/* SPDX-License-Identifier: Apache-2.0
 *
 * A function under test: a symbol of its own, called at every call site.
 * Clang has no noipa; KEEP() in a body stops it from inferring that the
 * function is pure and dropping calls of it.
 */
#ifndef TARGETS_HARNESS_TRACED_H
#define TARGETS_HARNESS_TRACED_H

#if defined(__clang__) || !defined(__GNUC__)
#define TRACED __attribute__((noinline, used))
#else
#define TRACED __attribute__((noinline, noclone, noipa, used))
#endif
#define KEEP() __asm__ volatile("" ::: "memory")

#endif

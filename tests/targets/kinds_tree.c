/* SPDX-License-Identifier: Apache-2.0
 *
 * A tree of calls with recursion and with several ways out, the same however it is
 * compiled: nothing is inlined, and no call is a function's last deed.
 */
#include "kinds.h"
#include "harness_traced.h"

TRACED word kind_leaf(word x)
{
	KEEP();
	return x * 13 + 7;
}

TRACED word kind_exits(word x)
{
	if (x % 4 == 0) {
		KEEP();
		return 5;
	}
	if (x % 4 == 1) {
		word got = kind_leaf(x);
		KEEP();
		return got + 1;
	}
	if (x % 4 == 2) {
		word got = kind_leaf(x + 1);
		KEEP();
		return got ^ 3;
	}
	word got = kind_leaf(kind_leaf(x));
	KEEP();
	return got;
}

TRACED word kind_recursive(word n)
{
	if (n == 0) {
		KEEP();
		return 1;
	}
	word rest = kind_recursive(n - 1);
	KEEP();
	return n * rest;
}

TRACED word kind_left(word n)
{
	if (n == 0) {
		KEEP();
		return 1;
	}
	word got = kind_right(n - 1);
	KEEP();
	return got * 2;
}

TRACED word kind_right(word n)
{
	if (n == 0) {
		KEEP();
		return 3;
	}
	word got = kind_left(n - 1);
	KEEP();
	return got + 5;
}

TRACED word kind_loop(word n)
{
	word sum = 0;
	for (word i = 0; i < n; i++)
		sum += kind_leaf(i);
	KEEP();
	return sum;
}

TRACED void kind_void(word x, word *result)
{
	if (x & 1) {
		KEEP();
		return;
	}
	*result = kind_leaf(x);
	KEEP();
}

TRACED word kind_many(word a, word b, word c, word d, word e, word f, word g, word h)
{
	word got = kind_leaf(a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h);
	KEEP();
	return got + h;
}

TRACED double kind_float(double a, float b)
{
	double got = (double)kind_leaf((word)b);
	KEEP();
	return a + got;
}

TRACED word kind_root(word x)
{
	word result = 9;
	word sum = kind_exits(x) + kind_exits(x + 1) + kind_exits(x + 2) + kind_exits(x + 3);
	sum += kind_recursive(5) + kind_left(3) + kind_loop(4);
	kind_void(x, &result);
	kind_void(x + 1, &result);
	sum += result + kind_many(x, 1, 2, 3, 4, 5, 6, 7);
	sum += (word)kind_float(0.5, 2.0f);
	KEEP();
	return sum;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Every shape of function and of call that the ABI knows, and in assembly (shapes_asm*.S)
 * those that it does not: each called in every iteration, each result checked.
 */
#include "harness.h"

#include <complex.h>

typedef unsigned long word;

/* --- recursion and tail calls --- */
COUNTER(leaf);
COUNTER(fact);
COUNTER(ackermann);
COUNTER(tail_even);
COUNTER(tail_odd);

TRACED word leaf(word x)
{
	KEEP();
	return x * 7 + 1;
}

TRACED word fact(word n)
{
	if (n <= 1)
		return 1;
	word rest = fact(n - 1);
	KEEP(); /* or the compiler makes a loop of it */
	return n * rest;
}

TRACED word ackermann(word m, word n)
{
	word result;
	if (m == 0)
		return n + 1;
	if (n == 0)
		result = ackermann(m - 1, 1);
	else {
		result = ackermann(m, n - 1);
		KEEP();
		result = ackermann(m - 1, result);
	}
	KEEP();
	return result;
}

word tail_odd(word n, word sum);
TRACED word tail_even(word n, word sum)
{
	if (n == 0)
		return sum;
	return tail_odd(n - 1, sum + 1);
}
TRACED word tail_odd(word n, word sum)
{
	if (n == 0)
		return sum;
	return tail_even(n - 1, sum + 2);
}

/* Where tail calls are jumps, their depth costs no stack. */
#if OPT_LEVEL >= 2 && !defined(NO_SIBLING_CALLS)
#define TAIL_DEEP 1000000
#else
#define TAIL_DEEP 1000
#endif

static void check_recursion(word x)
{
	COUNT(leaf, 1);
	CHECK("leaf", leaf(x), x * 7 + 1);
	COUNT(fact, 12);
	CHECK("fact", fact(12), 479001600);
	COUNT(ackermann, 44);
	CHECK("ackermann", ackermann(2, 3), 9);
	word depth = x % 256 == 0 ? TAIL_DEEP : 20;
	COUNT(tail_even, depth / 2 + 1);
	COUNT(tail_odd, depth / 2);
	CHECK("tail_even", tail_even(depth, x), x + depth / 2 * 3);
}

/* --- arguments and results --- */
typedef struct { long a, b; } pair_int;
typedef struct { double a, b; } pair_fp;
typedef struct { double a; long b; } pair_mixed;
typedef struct { float a, b, c; } triple_float;
typedef struct { long v[6]; double d; } big;

COUNTER(twelve);
COUNTER(twelve_mixed);
COUNTER(swap_pair_int);
COUNTER(swap_pair_fp);
COUNTER(make_pair_mixed);
COUNTER(turn_triple);
COUNTER(big_next);
COUNTER(wide_add);
COUNTER(sum_ints);
COUNTER(sum_doubles);
COUNTER(sum_mixed);
COUNTER(long_double_mix);
COUNTER(complex_float);
COUNTER(complex_double);
COUNTER(complex_long);
COUNTER(bool_odd);
COUNTER(byte_add);

TRACED word twelve(word a, word b, word c, word d, word e, word f, word g, word h, word i, word j, word k, word l)
{
	KEEP();
	return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i + 10 * j + 11 * k + 12 * l;
}

TRACED double twelve_mixed(char a, double b, short c, float d, int e, long double f, word g, double h, pair_int i,
			   char j, short k, int l)
{
	KEEP();
	return a + b + c + (double)d + e + (double)f + (double)g + h + (double)(i.a * i.b) + j + k + l;
}

TRACED pair_int swap_pair_int(pair_int p)
{
	KEEP();
	return (pair_int){ p.b, p.a };
}

TRACED pair_fp swap_pair_fp(pair_fp p)
{
	KEEP();
	return (pair_fp){ p.b, p.a };
}

TRACED pair_mixed make_pair_mixed(long b, double a)
{
	KEEP();
	return (pair_mixed){ a + 1, b + 2 };
}

TRACED triple_float turn_triple(triple_float t)
{
	KEEP();
	return (triple_float){ t.b, t.c, t.a };
}

/* In memory both ways: the address of the result comes in rdi and back in rax. */
TRACED big big_next(big b, long step)
{
	KEEP();
	for (int i = 0; i < 6; i++)
		b.v[i] += step + i;
	b.d *= 2;
	return b;
}

TRACED __int128 wide_add(__int128 a, __int128 b)
{
	KEEP();
	return a + b;
}

TRACED long sum_ints(int count, ...)
{
	va_list list;
	va_start(list, count);
	long sum = 0;
	for (int i = 0; i < count; i++)
		sum += va_arg(list, long);
	va_end(list);
	return sum;
}

TRACED double sum_doubles(int count, ...)
{
	va_list list;
	va_start(list, count);
	double sum = 0;
	for (int i = 0; i < count; i++)
		sum += va_arg(list, double);
	va_end(list);
	return sum;
}

TRACED long double sum_mixed(int count, ...)
{
	va_list list;
	va_start(list, count);
	long double sum = 0;
	for (int i = 0; i < count; i++) {
		sum += va_arg(list, int);
		sum += (long double)va_arg(list, double);
		sum += va_arg(list, long double);
	}
	va_end(list);
	return sum;
}

TRACED long double long_double_mix(long double a, long double b, int c)
{
	KEEP();
	return a * 2 + b - c;
}

TRACED float complex complex_float(float complex a, float complex b)
{
	KEEP();
	return a + b;
}

TRACED double complex complex_double(double complex a, double complex b)
{
	KEEP();
	return a - b;
}

TRACED long double complex complex_long(long double complex a, long double complex b)
{
	KEEP();
	return a + b;
}

TRACED _Bool bool_odd(word x)
{
	KEEP();
	return x & 1;
}

TRACED signed char byte_add(signed char a, unsigned char b)
{
	KEEP();
	return (signed char)(a + b);
}

static void check_structs(word x)
{
	long s = (long)(x & 0xfffff);
	double d = (double)s;
	pair_int p = CALL(swap_pair_int, ((pair_int){ s, s + 1 }));
	CHECK("swap_pair_int a", p.a, s + 1);
	CHECK("swap_pair_int b", p.b, s);
	pair_fp f = CALL(swap_pair_fp, ((pair_fp){ d, d + 1 }));
	CHECK_FP("swap_pair_fp a", f.a, d + 1);
	CHECK_FP("swap_pair_fp b", f.b, d);
	pair_mixed m = CALL(make_pair_mixed, s, d);
	CHECK_FP("make_pair_mixed a", m.a, d + 1);
	CHECK("make_pair_mixed b", m.b, s + 2);
	triple_float t = CALL(turn_triple, ((triple_float){ (float)s, 2, 3 }));
	CHECK_FP("turn_triple a", t.a, 2);
	CHECK_FP("turn_triple b", t.b, 3);
	CHECK_FP("turn_triple c", t.c, (float)s);
	big b = CALL(big_next, ((big){ { s, s + 1, s + 2, s + 3, s + 4, s + 5 }, d }), 10);
	for (int i = 0; i < 6; i++)
		CHECK("big_next v", b.v[i], s + 10 + 2 * i);
	CHECK_FP("big_next d", b.d, d * 2);
	__int128 w = CALL(wide_add, ((__int128)s << 64) | x, ((__int128)7 << 64) | 5);
	CHECK("wide_add high", (word)(w >> 64), (word)s + 7 + (x + 5 < x));
	CHECK("wide_add low", (word)w, x + 5);
}

static void check_arguments(word x)
{
	long s = (long)(x & 0xfffff);
	double d = (double)s;
	CHECK("twelve", CALL(twelve, x, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11), x + 572);
	CHECK_FP("twelve_mixed",
		 CALL(twelve_mixed, 1, d, 2, 0.5f, 3, 4.25L, x & 0xff, 6, ((pair_int){ 7, 8 }), 9, 10, 11),
		 d + 102.75 + (double)(x & 0xff));
	CHECK("sum_ints", CALL(sum_ints, 10, s, 1L, 2L, 3L, 4L, 5L, 6L, 7L, 8L, 9L), s + 45);
	CHECK_FP("sum_doubles", CALL(sum_doubles, 10, d, 1., 2., 3., 4., 5., 6., 7., 8., 9.), d + 45);
	CHECK_FP("sum_mixed", CALL(sum_mixed, 3, 1, d, 0.5L, 2, d, 0.25L, 3, d, 0.125L), d * 3 + 6.875);
	CHECK_FP("long_double_mix", CALL(long_double_mix, (long double)x, 0.5L, 3), (long double)x * 2 + 0.5L - 3);
	float complex cf = CALL(complex_float, (float)s + 1.0f * I, 2.0f + 3.0f * I);
	CHECK_FP("complex_float re", crealf(cf), (float)s + 2.0f);
	CHECK_FP("complex_float im", cimagf(cf), 4);
	double complex cd = CALL(complex_double, d + 9.0 * I, 2.0 + 3.0 * I);
	CHECK_FP("complex_double re", creal(cd), d - 2);
	CHECK_FP("complex_double im", cimag(cd), 6);
	long double complex cl = CALL(complex_long, (long double)x + 5.0L * I, 0.5L + 6.0L * I);
	CHECK_FP("complex_long re", creall(cl), (long double)x + 0.5L);
	CHECK_FP("complex_long im", cimagl(cl), 11);
	CHECK("bool_odd", CALL(bool_odd, x), x & 1);
	CHECK("byte_add", CALL(byte_add, (signed char)x, 100) & 0xff, (x + 100) & 0xff);
}

/* --- bodies --- */
COUNTER(empty);
COUNTER(constant);
COUNTER(switch_start);
COUNTER(loop_start);
COUNTER(apply);
COUNTER(callback);
COUNTER(large_frame);
COUNTER(aligned_frame);
COUNTER(variable_frame);
COUNTER(nested_outer);

TRACED void empty(void)
{
}

TRACED int constant(void)
{
	KEEP();
	return 42;
}

TRACED word switch_start(word x)
{
	switch (x % 9) {
	case 0: KEEP(); return x + 11;
	case 1: KEEP(); return x * 3;
	case 2: KEEP(); return x ^ 0x55;
	case 3: KEEP(); return x >> 1;
	case 4: KEEP(); return ~x;
	case 5: KEEP(); return x - 5;
	case 6: KEEP(); return x << 2;
	case 7: KEEP(); return x | 1;
	default: return 0;
	}
}

TRACED word loop_start(word x)
{
	do {
		x >>= 1;
		KEEP();
	} while (x > 1000);
	return x;
}

TRACED word callback(word x, void *context)
{
	return x + *(word *)context;
}

TRACED word apply(word (*function)(word, void *), word x, void *context)
{
	return function(x, context) * 2;
}

TRACED word large_frame(word x)
{
	volatile unsigned char bytes[40000];
	for (unsigned i = 0; i < sizeof bytes; i += 4096)
		bytes[i] = (unsigned char)(x + i);
	bytes[sizeof bytes - 1] = (unsigned char)x;
	return (word)bytes[8192] + bytes[sizeof bytes - 1];
}

/* Realigns its stack: the compiler copies the return address to do so. */
TRACED word aligned_frame(word x)
{
	volatile __attribute__((aligned(64))) word values[8] = { x, x + 1, x + 2 };
	CHECK("aligned_frame", (word)values & 63, 0);
	return leaf(values[2]) + values[1];
}

TRACED word variable_frame(word x)
{
	word count = (x & 15) + 1;
	volatile word values[count];
	for (word i = 0; i < count; i++)
		values[i] = i;
	return leaf(values[count - 1]);
}

#ifndef __clang__
/* The inner function finds the outer frame through r10. */
TRACED word nested_outer(word x)
{
	word local = x * 3;
	__attribute__((noinline, noclone)) word nested_inner(word y)
	{
		KEEP();
		local += y;
		return local;
	}
	word first = nested_inner(1);
	return nested_inner(first) + local;
}
#endif

static void check_bodies(word x)
{
	CALL(empty);
	CHECK("constant", CALL(constant), 42);
	word r = x % 9, s = CALL(switch_start, x);
	CHECK("switch_start", s,
	      r == 0 ? x + 11 : r == 1 ? x * 3 : r == 2 ? x ^ 0x55 : r == 3 ? x >> 1 : r == 4 ? ~x :
	      r == 5 ? x - 5 : r == 6 ? x << 2 : r == 7 ? x | 1 : 0);
	word half = x;
	do
		half >>= 1;
	while (half > 1000);
	CHECK("loop_start", CALL(loop_start, x), half);
	word context = x + 9;
	COUNT(callback, 1);
	CHECK("apply", CALL(apply, callback, x, &context), (x + context) * 2);
	CHECK("large_frame", CALL(large_frame, x), 2 * (x & 0xff));
	COUNT(leaf, 2);
	CHECK("aligned_frame", CALL(aligned_frame, x), (x + 2) * 7 + 1 + x + 1);
	CHECK("variable_frame", CALL(variable_frame, x), (x & 15) * 7 + 1);
#ifndef __clang__
	word local = x * 3 + 1;
	CHECK("nested_outer", CALL(nested_outer, x), 4 * local);
#endif
}

/* --- functions in assembly --- */
#ifdef __aarch64__
#include "shapes_aarch64.h"
#else
#include "shapes_x86_64.h"
#endif

static void worker(long index)
{
	for (word x = (word)index << 20; harness_running(); x++) {
		check_recursion(x);
		check_arguments(x);
		check_structs(x);
		check_bodies(x);
		check_assembly(x);
		harness_iterated();
	}
}

static void burst(long n)
{
	for (word i = 0; i < (word)n; i++)
		CHECK("leaf", CALL(leaf, i), i * 7 + 1);
	harness_reply("burst done %ld", n);
}

int main(void)
{
	static const harness_command commands[] = { { "burst", burst }, { NULL, NULL } };
	harness_spawn(3, worker);
	return harness_main(commands, finish_assembly);
}

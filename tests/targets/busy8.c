/* SPDX-License-Identifier: Apache-2.0
 *
 * Eight busy threads in a small call tree, floating point and vector values in
 * every argument and result register, and a stream of new threads whose first
 * traced call has floating point arguments.
 */
#include "harness.h"

COUNTER(leaf);
COUNTER(chain_a);
COUNTER(chain_b);
COUNTER(chain_c);
COUNTER(fp_double);
COUNTER(fp_float);
COUNTER(fp_long);
COUNTER(fp_mixed);
COUNTER(fp_first);

/* Called by `burst` alone. */
TRACED unsigned long leaf(unsigned long x)
{
	KEEP();
	return x * 5 + 3;
}

TRACED unsigned long chain_c(unsigned long x)
{
	KEEP();
	return x * 3 + 1;
}

TRACED unsigned long chain_b(unsigned long x)
{
	return chain_c(x + 1) + 2;
}

TRACED unsigned long chain_a(unsigned long x)
{
	return chain_b(x * 2) + 1;
}

TRACED double fp_double(double a, double b, double c)
{
	KEEP();
	return a * b + c;
}

TRACED float fp_float(float a, float b)
{
	KEEP();
	return a * 2 + b;
}

TRACED long double fp_long(long double a, double b, long double c)
{
	KEEP();
	return a + (long double)b - c;
}

/* All argument registers of x86-64: eight xmm and six general ones. */
TRACED double fp_mixed(double a, long i, double b, long j, double c, long k, double d, long l, double e,
		       long m, double f, long n, double g, double h)
{
	KEEP();
	return a + b * 2 + c * 3 + d * 4 + e * 5 + f * 6 + g * 7 + h * 8 +
	       (double)(i + j * 2 + k * 3 + l * 4 + m * 5 + n * 6);
}

TRACED double fp_first(double a, double b, float c)
{
	KEEP();
	return a * 4 + b * 2 + (double)c;
}

#ifdef __aarch64__
#include "busy8_aarch64.h"
#else
#include "busy8_x86_64.h"
#endif

static void check_floats(unsigned long x)
{
	double d = (double)(x & 0xffff);
	CHECK_FP("fp_double", CALL(fp_double, d, 3, 0.5), d * 3 + 0.5);
	CHECK_FP("fp_float", CALL(fp_float, (float)d, 0.25f), d * 2 + 0.25);
	CHECK_FP("fp_long", CALL(fp_long, (long double)x + 0.5L, d, 1.0L), (long double)x + 0.5L + d - 1.0L);
	CHECK_FP("fp_mixed", CALL(fp_mixed, d, 1, d + 1, 2, d + 2, 3, d + 3, 4, d + 4, 5, d + 5, 6, d + 6, d + 7),
		 d * 36 + (2 + 6 + 12 + 20 + 30 + 42 + 56) + (1 + 4 + 9 + 16 + 25 + 36));
}

static void busy_worker(long index)
{
	for (unsigned long x = (unsigned long)index << 32; harness_running(); x++) {
		COUNT(chain_a, 1);
		COUNT(chain_b, 1);
		COUNT(chain_c, 1);
		CHECK("chain_a", chain_a(x), 6 * x + 7);
		check_floats(x);
		check_vectors(x);
		harness_iterated();
	}
}

/* The thread's first call of a function under test. */
static void *first_start(void *argument)
{
	double *value = (double *)argument;
	value[1] = CALL(fp_first, value[0], value[0] + 1, 0.5f);
	return NULL;
}

static void first_worker(long index)
{
	(void)index;
	for (long n = 0; harness_running(); n++) {
		double value[2] = { (double)(n & 0xffff), 0 };
		pthread_t thread;
		int error = pthread_create(&thread, NULL, first_start, value);
		CHECK("pthread_create", error, 0);
		pthread_join(thread, NULL);
		CHECK_FP("fp_first", value[1], value[0] * 6 + 2.5);
		harness_iterated();
		harness_milliseconds(3);
	}
}

static void burst(long n)
{
	for (unsigned long i = 0; i < (unsigned long)n; i++)
		CHECK("leaf", CALL(leaf, i), i * 5 + 3);
	harness_reply("burst done %ld", n);
}

int main(void)
{
	static const harness_command commands[] = { { "burst", burst }, { NULL, NULL } };
	prepare_vectors();
	harness_spawn(8, busy_worker);
	harness_spawn(1, first_worker);
	return harness_main(commands, NULL);
}

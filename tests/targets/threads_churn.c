/* SPDX-License-Identifier: Apache-2.0
 *
 * Threads that live for a few calls: joined and detached, with the default
 * stack and with the smallest, ending by return and by pthread_exit.
 */
#include "harness.h"

#include <limits.h>

enum { BATCH = 6 };

COUNTER(leaf);
COUNTER(short_life);
COUNTER(short_float);
COUNTER(short_recursion);

TRACED long leaf(long x)
{
	KEEP();
	return x * 17 + 2;
}

TRACED double short_float(double a, float b)
{
	KEEP();
	return a * 3 + (double)b;
}

TRACED long short_recursion(long depth)
{
	COUNT(short_recursion, 1);
	if (depth == 0)
		return 1;
	long got = short_recursion(depth - 1);
	KEEP();
	return got + depth;
}

typedef struct life {
	long x;
	int *left; /* of a detached thread: where it says that it is done */
} life;

TRACED void *short_life(void *argument)
{
	life *self = (life *)argument;
	long x = self->x;
	COUNT(short_life, 1);
	CHECK_FP("short_float", CALL(short_float, (double)x, 0.5f), (double)x * 3 + 0.5);
	CHECK("leaf", CALL(leaf, x), x * 17 + 2);
	CHECK("short_recursion", short_recursion(10), 56);
	if (self->left)
		__atomic_sub_fetch(self->left, 1, __ATOMIC_RELEASE);
	if (x % 2)
		pthread_exit((void *)(x + 1));
	return (void *)(x + 1);
}

static void worker(long index)
{
	pthread_attr_t small, detached;
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, (size_t)sysconf(_SC_THREAD_STACK_MIN) + 8192);
	pthread_attr_init(&detached);
	pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
	for (long x = index; harness_running(); x += BATCH) {
		pthread_t threads[BATCH];
		life lives[BATCH];
		int left = 0;
		for (long i = 0; i < BATCH; i++) {
			int kind = (int)(i % 3);
			lives[i] = (life){ x + i, kind == 2 ? &left : NULL };
			if (kind == 2)
				__atomic_add_fetch(&left, 1, __ATOMIC_RELAXED);
			int error = pthread_create(&threads[i], kind == 0 ? NULL : kind == 1 ? &small : &detached,
						   short_life, &lives[i]);
			CHECK("pthread_create", error, 0);
		}
		for (long i = 0; i < BATCH; i++) {
			void *result = NULL;
			if (i % 3 == 2)
				continue;
			CHECK("pthread_join", pthread_join(threads[i], &result), 0);
			CHECK("result", (long)result, x + i + 1);
		}
		while (__atomic_load_n(&left, __ATOMIC_ACQUIRE))
			sched_yield();
		harness_iterated();
	}
}

static void burst(long n)
{
	for (long i = 0; i < n; i++)
		CHECK("leaf", CALL(leaf, i), i * 17 + 2);
	harness_reply("burst done %ld", n);
}

int main(void)
{
	static const harness_command commands[] = { { "burst", burst }, { NULL, NULL } };
	harness_spawn(3, worker);
	return harness_main(commands, NULL);
}

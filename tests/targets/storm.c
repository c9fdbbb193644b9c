/* SPDX-License-Identifier: Apache-2.0
 *
 * Eight threads that do next to nothing, until some of them are told to call a leaf
 * function as fast as they can.
 *
 *   storm N -> storm N     threads 0 to N-1 call `hot` and `warm`, in turns of 9 and 1
 *   calm    -> calm        nobody does
 *
 * `slow` is called by all of them a hundred times a second at most, whatever happens.
 */
#include "harness.h"

enum { THREADS = 8, ROUNDS = 1000 };

COUNTER(hot);
COUNTER(warm);
COUNTER(slow);

static int storming;

TRACED unsigned long hot(unsigned long x)
{
	KEEP();
	return x * 5 + 3;
}

TRACED unsigned long warm(unsigned long x)
{
	KEEP();
	return x * 7 + 1;
}

TRACED unsigned long slow(unsigned long x)
{
	KEEP();
	return x + 11;
}

static void worker(long index)
{
	for (unsigned long x = 0; harness_running(); x++) {
		struct timespec started, now;
		CHECK("slow", CALL(slow, x), x + 11);
		clock_gettime(CLOCK_MONOTONIC, &started);
		do {
			if (index >= __atomic_load_n(&storming, __ATOMIC_RELAXED)) {
				harness_milliseconds(10);
				break;
			}
			for (unsigned long i = 0; i < ROUNDS; i++) {
				for (unsigned long j = 0; j < 9; j++)
					CHECK("hot", hot(i + j), (i + j) * 5 + 3);
				CHECK("warm", warm(i), i * 7 + 1);
			}
			COUNT(hot, 9 * ROUNDS);
			COUNT(warm, ROUNDS);
			clock_gettime(CLOCK_MONOTONIC, &now);
		} while ((now.tv_sec - started.tv_sec) * 1000000000 + now.tv_nsec - started.tv_nsec < 10000000);
		harness_iterated();
	}
}

static void storm(long threads)
{
	__atomic_store_n(&storming, (int)threads, __ATOMIC_RELAXED);
	harness_reply("storm %ld", threads);
}

static void calm(long unused)
{
	(void)unused;
	__atomic_store_n(&storming, 0, __ATOMIC_RELAXED);
	harness_reply("calm");
}

int main(void)
{
	static const harness_command commands[] = { { "storm", storm }, { "calm", calm }, { NULL, NULL } };
	harness_spawn(THREADS, worker);
	return harness_main(commands, NULL);
}

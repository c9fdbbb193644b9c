/* SPDX-License-Identifier: Apache-2.0
 *
 * A function that takes as long as the program's argument says, in nanoseconds, and one
 * that takes as long everywhere: two of these are a fast host and a slow one.
 */
#include "harness.h"

COUNTER(leaf);
COUNTER(work);

static long delay_ns;

static long now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000L + now.tv_nsec;
}

TRACED unsigned long leaf(unsigned long x)
{
	KEEP();
	return x * 5 + 3;
}

TRACED unsigned long work(unsigned long x)
{
	long until = now_ns() + delay_ns;
	while (now_ns() < until)
		;
	return x + 1;
}

static void burst(long n)
{
	for (unsigned long i = 0; i < (unsigned long)n; i++) {
		CHECK("leaf", CALL(leaf, i), i * 5 + 3);
		CHECK("work", CALL(work, i), i + 1);
	}
	harness_reply("burst done %ld", n);
}

int main(int argc, char **argv)
{
	static const harness_command commands[] = { { "burst", burst }, { NULL, NULL } };
	delay_ns = argc > 1 ? strtol(argv[1], NULL, 10) : 0;
	return harness_main(commands, NULL);
}

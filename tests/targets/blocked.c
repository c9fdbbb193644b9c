/* SPDX-License-Identifier: Apache-2.0
 *
 * Every thread, main included, is blocked in a system call and stays so.
 */
#include "waiters.h"

COUNTER(leaf);

TRACED long leaf(long x)
{
	KEEP();
	return x + 17;
}

static void burst(long n)
{
	for (long i = 0; i < n; i++)
		CHECK("leaf", CALL(leaf, i), i + 17);
	harness_reply("burst done %ld", n);
}

static void finish(void)
{
	waiters_finish();
	for (int i = 0; i < waiters_count; i++)
		harness_iterated(); /* each waited to the end undisturbed */
}

int main(void)
{
	static const harness_command commands[] = { { "burst", burst }, { "poke", waiters_poke }, { NULL, NULL } };
	waiters_start();
	return harness_main(commands, finish);
}

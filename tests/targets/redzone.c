/* SPDX-License-Identifier: Apache-2.0
 *
 * Live data below the stack pointer (redzone_asm.S), with signals on top.
 * `strict 1` adds two functions that no ABI promises to keep: they pass data
 * below the stack pointer across a call and a return.
 */
#include "harness.h"

#include <signal.h>
#include <sys/time.h>

typedef unsigned long word;
word redzone_loop(word rounds, word value, word first);
word redzone_leaf(word value);
word redzone_pass(word a, word b);
word redzone_result(word value);

COUNTER(leaf);
COUNTER(redzone_loop);
COUNTER(redzone_leaf);
COUNTER(redzone_pass);
COUNTER(redzone_result);
COUNTER(on_alarm);

static int strict;

TRACED word leaf(word x)
{
	KEEP();
	return x * 29 + 8;
}

TRACED void on_alarm(int number)
{
	COUNT(on_alarm, 1);
	CHECK("signal", number, SIGALRM);
	CHECK("redzone_leaf", CALL(redzone_leaf, 10), 40);
}

static void worker(long index)
{
	for (word x = (word)index << 16; harness_running(); x++) {
		CHECK("redzone_loop", CALL(redzone_loop, x % 9 + 1, x, 1), 5 * x + 10);
		CHECK("redzone_leaf", CALL(redzone_leaf, x), 4 * x);
		if (__atomic_load_n(&strict, __ATOMIC_RELAXED)) {
			CHECK("redzone_pass", CALL(redzone_pass, x, 3), x + 3);
			CHECK("redzone_result", CALL(redzone_result, x), 2 * x + 11);
		}
		harness_iterated();
	}
}

static void set_timer(int paused)
{
	struct itimerval every = { { 0, paused ? 0 : 1000 }, { 0, paused ? 0 : 1000 } };
	setitimer(ITIMER_REAL, &every, NULL);
}

static void set_strict(long argument)
{
	__atomic_store_n(&strict, (int)argument, __ATOMIC_RELAXED);
	harness_reply("strict done %ld", argument);
}

static void burst(long n)
{
	for (word i = 0; i < (word)n; i++)
		CHECK("leaf", CALL(leaf, i), i * 29 + 8);
	harness_reply("burst done %ld", n);
}

int main(void)
{
	static const harness_command commands[] = { { "burst", burst }, { "strict", set_strict }, { NULL, NULL } };
	struct sigaction action = { .sa_handler = on_alarm, .sa_flags = SA_RESTART };
	sigaction(SIGALRM, &action, NULL);
	harness_spawn(3, worker);
	harness_on_pause = set_timer;
	set_timer(0);
	return harness_main(commands, NULL);
}

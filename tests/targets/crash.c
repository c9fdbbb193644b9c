/* SPDX-License-Identifier: Apache-2.0
 *
 * Ends badly on command, after exactly N calls of `leaf` by the main thread:
 *   crash N: SIGSEGV   abort N: SIGABRT   kill N: SIGKILL   leave N: _exit(0)
 * Each says `crashing N` first.
 */
#include "harness.h"

#include <signal.h>
#include <sys/resource.h>

COUNTER(leaf);
COUNTER(chain);

TRACED long leaf(long x)
{
	KEEP();
	return x * 31 + 9;
}

TRACED long chain(long x)
{
	return leaf(x) * 2;
}

static void worker(long index)
{
	(void)index;
	for (long x = 0; harness_running(); x++) {
		COUNT(leaf, 1);
		CHECK("chain", CALL(chain, x), (x * 31 + 9) * 2);
		harness_iterated();
	}
}

static void calls(long n)
{
	for (long i = 0; i < n; i++)
		CHECK("leaf", CALL(leaf, i), i * 31 + 9);
}

static void burst(long n)
{
	calls(n);
	harness_reply("burst done %ld", n);
}

static void crash(long n)
{
	harness_reply("crashing %ld", n);
	calls(n);
	volatile int *volatile nowhere = NULL;
	*nowhere = 1;
}

static void abort_after(long n)
{
	harness_reply("crashing %ld", n);
	calls(n);
	abort();
}

static void kill_after(long n)
{
	harness_reply("crashing %ld", n);
	calls(n);
	kill(getpid(), SIGKILL);
}

static void leave(long n)
{
	harness_reply("crashing %ld", n);
	calls(n);
	_exit(0);
}

int main(void)
{
	static const harness_command commands[] = { { "burst", burst }, { "crash", crash }, { "abort", abort_after },
						    { "kill", kill_after }, { "leave", leave }, { NULL, NULL } };
	struct rlimit none = { 0, 0 };
	setrlimit(RLIMIT_CORE, &none);
	harness_spawn(2, worker);
	return harness_main(commands, NULL);
}

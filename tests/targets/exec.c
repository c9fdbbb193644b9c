/* SPDX-License-Identifier: Apache-2.0
 *
 * Executes itself on command and says ready again, with the same pid:
 *   exec: from the main thread   threadexec: from another thread
 */
#include "harness.h"

COUNTER(leaf);
COUNTER(chain);

TRACED long leaf(long x)
{
	KEEP();
	return x * 37 + 10;
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
		CHECK("chain", CALL(chain, x), (x * 37 + 10) * 2);
		harness_iterated();
	}
}

static void burst(long n)
{
	for (long i = 0; i < n; i++)
		CHECK("leaf", CALL(leaf, i), i * 37 + 10);
	harness_reply("burst done %ld", n);
}

static void exec_again(long argument)
{
	char path[4096];
	(void)argument;
	ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
	REQUIRE("readlink", length > 0);
	path[length] = 0;
	char *const arguments[] = { path, NULL };
	execv(path, arguments);
	harness_bad("execv", "got errno %d want no return", errno);
}

static void *exec_start(void *argument)
{
	exec_again(0);
	return argument;
}

static void thread_exec(long argument)
{
	pthread_t thread;
	(void)argument;
	CHECK("pthread_create", pthread_create(&thread, NULL, exec_start, NULL), 0);
	pthread_join(thread, NULL);
}

int main(void)
{
	static const harness_command commands[] = {
		{ "burst", burst }, { "exec", exec_again }, { "threadexec", thread_exec }, { NULL, NULL }
	};
	harness_spawn(2, worker);
	return harness_main(commands, NULL);
}

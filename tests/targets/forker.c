/* SPDX-License-Identifier: Apache-2.0
 *
 * Children by every means: fork (the child returns through frames that its
 * parent entered, calls traced functions and exits), vfork and exec,
 * posix_spawn, and a fork in the fork. Every status is checked.
 */
#include "harness.h"

#include <spawn.h>
#include <sys/wait.h>

COUNTER(leaf);
COUNTER(chain);
COUNTER(fp_half);
COUNTER(fork_inside);
COUNTER(run_vfork);
COUNTER(run_spawn);

extern char **environ;

TRACED long leaf(long x)
{
	KEEP();
	return x * 9 + 4;
}

TRACED long chain(long x)
{
	return leaf(x + 1) + 2;
}

TRACED double fp_half(double x, float y)
{
	KEEP();
	return x / 2 + (double)y;
}

/* Calls made in a child count in the child alone: its counters are a copy. */
static void check_calls(long x)
{
	COUNT(chain, 1);
	COUNT(leaf, 1);
	CHECK("chain", chain(x), (x + 1) * 9 + 6);
	CHECK_FP("fp_half", CALL(fp_half, (double)x, 0.25f), (double)x / 2 + 0.25);
}

/* fork() happens `depth` frames in; both sides return through them. */
TRACED long fork_inside(long depth, pid_t *child)
{
	COUNT(fork_inside, 1);
	if (depth == 0) {
		*child = fork();
		return 0;
	}
	long got = fork_inside(depth - 1, child);
	KEEP();
	return got + 1;
}

static int reap(pid_t child)
{
	int status = -1;
	while (waitpid(child, &status, 0) != child)
		REQUIRE("waitpid", errno == EINTR);
	return status;
}

static void check_fork(long x)
{
	pid_t child = -1;
	long depth = x % 6;
	CHECK("fork_inside", fork_inside(depth, &child), depth);
	REQUIRE("fork", child >= 0);
	if (child == 0) {
		for (long i = 0; i < 50; i++)
			check_calls(x + i);
		pid_t grandchild = -1;
		if (x % 4 == 0) {
			fork_inside(2, &grandchild);
			if (grandchild == 0) {
				check_calls(x);
				_exit(9);
			}
			CHECK("grandchild", reap(grandchild), 9 << 8);
		}
		_exit(7);
	}
	int status = reap(child);
	CHECK("child", status, 7 << 8);
}

TRACED int run_vfork(void)
{
	char *const arguments[] = { (char *)"/bin/true", NULL };
	pid_t child = vfork();
	if (child == 0) {
		execv(arguments[0], arguments);
		_exit(127);
	}
	REQUIRE("vfork", child > 0);
	return reap(child);
}

TRACED int run_spawn(void)
{
	char *const arguments[] = { (char *)"/bin/true", NULL };
	pid_t child;
	CHECK("posix_spawn", posix_spawn(&child, arguments[0], NULL, NULL, arguments, environ), 0);
	return reap(child);
}

static void forking_worker(long index)
{
	for (long x = index; harness_running(); x++) {
		check_calls(x);
		check_fork(x);
		CHECK("run_vfork", CALL(run_vfork), 0);
		CHECK("run_spawn", CALL(run_spawn), 0);
		harness_iterated();
	}
}

static void calling_worker(long index)
{
	for (long x = index; harness_running(); x++) {
		check_calls(x);
		harness_iterated();
	}
}

static void burst(long n)
{
	for (long i = 0; i < n; i++)
		CHECK("leaf", CALL(leaf, i), i * 9 + 4);
	harness_reply("burst done %ld", n);
}

/* One child that stays until its stdin, the command pipe's twin, is closed:
 * replies with its pid, so that a test can look at its memory. */
static int held_pipe = -1;
static pid_t held = -1;
static void hold(long n)
{
	int ends[2];
	REQUIRE("pipe", pipe(ends) == 0);
	held = fork();
	REQUIRE("fork", held >= 0);
	if (held == 0) {
		char byte;
		close(ends[1]);
		for (long i = 0; i < n; i++)
			check_calls(i);
		while (read(ends[0], &byte, 1) > 0)
			check_calls(byte);
		_exit(5);
	}
	close(ends[0]);
	held_pipe = ends[1];
	harness_reply("hold %d", (int)held);
}

static void release(long argument)
{
	(void)argument;
	REQUIRE("held", held > 0);
	close(held_pipe);
	CHECK("held child", reap(held), 5 << 8);
	held = -1;
	harness_reply("release done");
}

int main(void)
{
	static const harness_command commands[] = {
		{ "burst", burst }, { "hold", hold }, { "release", release }, { NULL, NULL }
	};
	harness_spawn(2, forking_worker);
	harness_spawn(1, calling_worker);
	return harness_main(commands, NULL);
}

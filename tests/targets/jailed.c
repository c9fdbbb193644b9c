/* SPDX-License-Identifier: Apache-2.0
 *
 * Confines itself by seccomp filters, which are files of struct sock_filter:
 *   FILE        for all threads, once they run
 *   one:FILE    for the last worker alone
 *   later:FILE  for all threads, by the command `tighten`
 *   mdwe        no argument for it: PR_SET_MDWE, which is no filter
 * One worker computes, two sleep again and again, one waits in poll for an hour.
 */
#include "harness.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#define WORKERS 4
#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#endif

COUNTER(leaf);
COUNTER(chain);

#define FILTERS 16
static struct sock_filter instructions[FILTERS][BPF_MAXINSNS];
static struct sock_fprog programs[FILTERS];
static struct sock_fprog *alone, *later;
static int confined[2], hour[2];

TRACED long leaf(long x)
{
	KEEP();
	return x * 31 + 9;
}

TRACED long chain(long x)
{
	return leaf(x) * 2;
}

/* All are read before the first may forbid it. */
static struct sock_fprog *load(const char *file, int index)
{
	struct sock_fprog *program = &programs[index];
	int fd = open(file, O_RDONLY);
	ssize_t size = read(fd, instructions[index], sizeof instructions[index]);

	close(fd);
	REQUIRE("filter", size > 0 && size % sizeof(struct sock_filter) == 0);
	program->filter = instructions[index];
	program->len = (unsigned short)((unsigned long)size / sizeof(struct sock_filter));
	return program;
}

static void confine(const struct sock_fprog *program, unsigned int flags)
{
	REQUIRE("seccomp", !syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, program));
}

static void compute(long x)
{
	COUNT(leaf, 1);
	CHECK("chain", CALL(chain, x), (x * 31 + 9) * 2);
	harness_iterated();
}

static void worker(long index)
{
	char byte;

	if (index == WORKERS - 1 && alone)
		confine(alone, 0);
	REQUIRE("told", write(confined[1], "x", 1) == 1);
	if (index == 2) {
		struct pollfd end = { hour[0], POLLIN, 0 };

		CHECK("poll", poll(&end, 1, 3600 * 1000), 1);
		CHECK("read", read(hour[0], &byte, 1), 1);
		compute(index);
		while (harness_running())
			harness_milliseconds(1);
		return;
	}
	for (long x = 0; harness_running(); x++) {
		compute(x);
		if (index)
			harness_milliseconds(1);
	}
}

static void burst(long n)
{
	for (long i = 0; i < n; i++)
		CHECK("leaf", CALL(leaf, i), i * 31 + 9);
	harness_reply("burst done %ld", n);
}

static void tighten(long unused)
{
	(void)unused;
	confine(later, SECCOMP_FILTER_FLAG_TSYNC);
	harness_reply("tightened");
}

/* The hour ends when the workers are to be joined, or parked. */
static void wake(int paused)
{
	if (paused)
		REQUIRE("wake", write(hour[1], "x", 1) == 1);
}

int main(int argc, char **argv)
{
	static const harness_command commands[] = {
		{ "burst", burst }, { "tighten", tighten }, { NULL, NULL }
	};
	struct sock_fprog *all[FILTERS];
	int count = 0;
	char byte;

	REQUIRE("arguments", argc <= FILTERS);
	REQUIRE("no_new_privs", !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	for (int i = 1; i < argc; i++)
		if (!strncmp(argv[i], "one:", 4))
			alone = load(argv[i] + 4, i - 1);
		else if (!strncmp(argv[i], "later:", 6))
			later = load(argv[i] + 6, i - 1);
		else if (!strcmp(argv[i], "mdwe"))
			REQUIRE("mdwe", !prctl(PR_SET_MDWE, 1, 0, 0, 0));
		else
			all[count++] = load(argv[i], i - 1);
	REQUIRE("pipe", !pipe(confined) && !pipe(hour));
	harness_on_pause = wake;
	harness_spawn(WORKERS, worker);
	for (int i = 0; i < WORKERS; i++)
		REQUIRE("confined", read(confined[0], &byte, 1) == 1);
	for (int i = 0; i < count; i++)
		confine(all[i], SECCOMP_FILTER_FLAG_TSYNC);
	return harness_main(commands, NULL);
}

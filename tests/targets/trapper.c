/* SPDX-License-Identifier: Apache-2.0
 *
 * A program that lives with SIGTRAP: it can have a handler of its own, runs into
 * breakpoints of its own and sends the signal to itself, all the time, and counts
 * that none is lost and none comes that it did not cause.
 *
 *   trapper [own] [calls] [slow] [change] [alone]
 *     own      handles SIGTRAP, and raises it
 *     calls    its handler calls the functions that everybody calls
 *     slow     the threads get SIGUSR1 all the time, whose handler sleeps at times
 *     alone    one thread only
 *     change   sets its action for SIGTRAP anew all the time (with own)
 *   disposition  -> disposition own|default|ignored|foreign flags=N mask=N
 *
 * It cannot block signals or fork: none of the functions for that are imported.
 */
#include "harness.h"

#include <signal.h>
#include <sys/syscall.h>

typedef unsigned long word;

COUNTER(leaf);
COUNTER(outer);
COUNTER(middle);
COUNTER(on_trap);
COUNTER_NAMED(calls_breakpoints, "breakpoints");
COUNTER_NAMED(calls_raised, "raised");
COUNTER_NAMED(calls_queued, "queued");
COUNTER_NAMED(calls_slow, "slow");

enum { WORKERS = 3 };

static int owns, calls, is_slow, changes, alone;
static int tids[WORKERS];
/* Of the thread: what its handler saw last, and how often it ran. */
static __thread volatile word traps_seen;
static __thread volatile int last_code, last_value;

TRACED word leaf(word x)
{
	KEEP();
	return x * 5 + 3;
}

TRACED word middle(word x, word y)
{
	KEEP();
	return leaf(x) + leaf(y);
}

TRACED word outer(word x)
{
	word sum = middle(x, x + 1);
	KEEP();
	return sum ^ middle(x + 2, 1);
}

static void check_all(word x)
{
	word first = 5 * x + 3, second = 5 * (x + 1) + 3, third = 5 * (x + 2) + 3;
	COUNT(middle, 2);
	COUNT(leaf, 4);
	CHECK("outer", CALL(outer, x), (first + second) ^ (third + 8));
}

static void on_trap(int number, siginfo_t *info, void *context)
{
	int error = errno;
	CHECK("signal", number, SIGTRAP);
	REQUIRE("context", context != NULL);
	COUNT(on_trap, 1);
	last_code = info->si_code;
	last_value = info->si_code == SI_QUEUE ? info->si_value.sival_int : 0;
	if (info->si_code == SI_TKILL || info->si_code == SI_QUEUE)
		CHECK("sender", info->si_pid, getpid());
	if (calls)
		check_all(700);
	traps_seen++;
	errno = error;
}

static int gettid_(void)
{
	return (int)syscall(SYS_gettid);
}

static void expect(const char *what, word seen, int code)
{
	CHECK(what, traps_seen, seen);
	CHECK("si_code", last_code, code);
}

/* Three kinds, each of which comes before the next line is reached. */
static void raise_all(word x)
{
	word seen = traps_seen;
	COUNT(breakpoints, 1);
	__asm__ volatile("int3" ::: "memory");
	expect("breakpoint", seen + 1, SI_KERNEL);
	COUNT(raised, 1);
	syscall(SYS_tgkill, getpid(), gettid_(), SIGTRAP);
	expect("raised", seen + 2, SI_TKILL);
	siginfo_t info = { .si_signo = SIGTRAP, .si_code = SI_QUEUE };
	info.si_pid = getpid();
	info.si_uid = getuid();
	info.si_value.sival_int = (int)(x & 0xffff);
	COUNT(queued, 1);
	syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid_(), SIGTRAP, &info);
	expect("queued", seen + 3, SI_QUEUE);
	CHECK("value", last_value, (int)(x & 0xffff));
}

static void worker(long index)
{
	__atomic_store_n(&tids[index], gettid_(), __ATOMIC_RELEASE);
	for (word x = (word)index << 20; harness_running(); x++) {
		for (word y = 0; y < 16; y++)
			check_all(x + y);
		if (owns)
			raise_all(x);
		harness_iterated();
	}
}

/* Interrupts whatever runs, a handler of SIGTRAP too, and stays for a while. */
static void on_user(int number)
{
	int error = errno;
	CHECK("signal", number, SIGUSR1);
	if (__atomic_add_fetch(&calls_slow.value, 1, __ATOMIC_RELAXED) % 16 == 0) {
		struct timespec rest = { 0, 20000000 };
		nanosleep(&rest, NULL);
	}
	check_all(900);
	errno = error;
}

static void storm(long index)
{
	for (word round = (word)index; harness_running(); round++) {
		int tid = __atomic_load_n(&tids[round % WORKERS], __ATOMIC_ACQUIRE);
		if (tid)
			syscall(SYS_tgkill, getpid(), tid, SIGUSR1);
		struct timespec rest = { 0, 100000 };
		nanosleep(&rest, NULL);
	}
}

static void set_action(int flags)
{
	struct sigaction action = { .sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | flags };
	sigaddset(&action.sa_mask, SIGUSR2);
	REQUIRE("sigaction", sigaction(SIGTRAP, &action, NULL) == 0);
}

static void change(long index)
{
	for (word round = (word)index; harness_running(); round++) {
		set_action(round & 1 ? SA_RESTART : 0);
		struct timespec rest = { 0, 50000 };
		nanosleep(&rest, NULL);
	}
}

static void disposition(long argument)
{
	struct sigaction now;
	REQUIRE("sigaction", sigaction(SIGTRAP, NULL, &now) == 0);
	const char *name = now.sa_handler == SIG_DFL ? "default" :
			   now.sa_handler == SIG_IGN ? "ignored" :
			   now.sa_sigaction == on_trap ? "own" : "foreign";
	word mask = 0;
	for (int number = 1; number < 32; number++)
		mask |= (word)sigismember(&now.sa_mask, number) << (number - 1);
	(void)argument;
	harness_reply("disposition %s flags=%#x mask=%#lx", name, (unsigned)now.sa_flags, mask);
}

static void burst(long n)
{
	for (word i = 0; i < (word)n; i++)
		CHECK("leaf", CALL(leaf, i), i * 5 + 3);
	harness_reply("burst done %ld", n);
}

static void finish(void)
{
	CHECK("all signals", calls_on_trap.value,
	      calls_breakpoints.value + calls_raised.value + calls_queued.value);
}

int main(int argc, char **argv)
{
	static const harness_command commands[] = {
		{ "burst", burst }, { "disposition", disposition }, { NULL, NULL }
	};
	for (int i = 1; i < argc; i++) {
		owns |= !strcmp(argv[i], "own");
		calls |= !strcmp(argv[i], "calls");
		alone |= !strcmp(argv[i], "alone");
		is_slow |= !strcmp(argv[i], "slow");
		changes |= !strcmp(argv[i], "change");
	}
	if (owns)
		set_action(SA_RESTART);
	if (is_slow) {
		struct sigaction user = { .sa_handler = on_user, .sa_flags = SA_RESTART };
		sigaction(SIGUSR1, &user, NULL);
	}
	harness_spawn(alone ? 1 : WORKERS, worker);
	if (is_slow)
		harness_spawn(1, storm);
	if (changes)
		harness_spawn(1, change);
	return harness_main(commands, finish);
}

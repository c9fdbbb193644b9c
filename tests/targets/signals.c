/* SPDX-License-Identifier: Apache-2.0
 *
 * Signals everywhere: profiling timers above 1 kHz and storms of SIGUSR1 into
 * threads that run traced functions, with handlers that call the same
 * functions, on alternate stacks with 4 KiB more than the kernel needs. Beside
 * them wait threads that must not notice any of it (waiters.h).
 */
#include "waiters.h"

#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/time.h>

COUNTER(leaf);
COUNTER(chain_a);
COUNTER(chain_b);
COUNTER(fp_sum);
COUNTER(on_profile);
COUNTER(on_user);

enum { WORKERS = 3 };
static pthread_t worker_threads[WORKERS];
static int workers_known;

TRACED long leaf(long x)
{
	KEEP();
	return x * 3 + 7;
}

TRACED long chain_b(long x)
{
	return leaf(x + 1) + 1;
}

TRACED long chain_a(long x)
{
	return chain_b(x) * 2;
}

TRACED double fp_sum(double a, double b, float c)
{
	KEEP();
	return a + b * 2 + (double)c;
}

static void check_all(long x)
{
	COUNT(chain_a, 1);
	COUNT(chain_b, 1);
	COUNT(leaf, 1);
	CHECK("chain_a", chain_a(x), ((x + 1) * 3 + 8) * 2);
	double d = (double)(x & 0xffff);
	CHECK_FP("fp_sum", CALL(fp_sum, d, 3, 0.5f), d + 6.5);
}

TRACED void on_profile(int number)
{
	int error = errno;
	COUNT(on_profile, 1);
	CHECK("signal", number, SIGPROF);
	check_all(1000);
	errno = error;
}

/* On the alternate stack when the thread has one. */
TRACED void on_user(int number, siginfo_t *info, void *context)
{
	int error = errno;
	COUNT(on_user, 1);
	CHECK("signal", number, SIGUSR1);
	CHECK("sender", info->si_pid, getpid());
	REQUIRE("context", context != NULL);
	check_all(2000);
	errno = error;
}

/* As small as a careful program would make it. */
static void use_small_stack(void)
{
	size_t least = getauxval(AT_MINSIGSTKSZ);
	size_t size = ((least ? least : 2048) + 4096 + 15) & ~(size_t)15;
	size_t area = (size + 4095) & ~(size_t)4095;
	char *low = mmap(NULL, area + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	REQUIRE("altstack", low != MAP_FAILED && mprotect(low, 4096, PROT_NONE) == 0);
	stack_t stack = { .ss_sp = low + 4096, .ss_size = size };
	REQUIRE("sigaltstack", sigaltstack(&stack, NULL) == 0);
}

static void computing_worker(long index)
{
	use_small_stack();
	worker_threads[index] = pthread_self();
	__atomic_add_fetch(&workers_known, 1, __ATOMIC_RELEASE);
	for (long x = index << 20; harness_running(); x++) {
		check_all(x);
		harness_iterated();
	}
}

static void storming_worker(long index)
{
	for (long round = index; harness_running(); round++) {
		if (__atomic_load_n(&workers_known, __ATOMIC_ACQUIRE) == WORKERS)
			pthread_kill(worker_threads[round % WORKERS], SIGUSR1);
		struct timespec rest = { 0, 50000 };
		nanosleep(&rest, NULL); /* handlers may cut it short */
		harness_iterated();
	}
}

static timer_t timer;

static void set_timers(int paused)
{
	long nanoseconds = paused ? 0 : 400000; /* 2.5 kHz of wall time */
	struct itimerspec wall = { { 0, nanoseconds }, { 0, nanoseconds } };
	struct itimerval cpu = { { 0, paused ? 0 : 500 }, { 0, paused ? 0 : 500 } };
	REQUIRE("timer_settime", timer_settime(timer, 0, &wall, NULL) == 0);
	REQUIRE("setitimer", setitimer(ITIMER_PROF, &cpu, NULL) == 0);
}

static void burst(long n)
{
	for (long i = 0; i < n; i++)
		CHECK("leaf", CALL(leaf, i), i * 3 + 7);
	harness_reply("burst done %ld", n);
}

int main(void)
{
	static const harness_command commands[] = { { "burst", burst }, { "poke", waiters_poke }, { NULL, NULL } };
	struct sigaction profile = { .sa_handler = on_profile, .sa_flags = SA_RESTART };
	struct sigaction user = { .sa_sigaction = on_user, .sa_flags = SA_RESTART | SA_SIGINFO | SA_ONSTACK };
	/* One frame at a time on the small stack. */
	sigfillset(&profile.sa_mask);
	sigfillset(&user.sa_mask);
	sigaction(SIGPROF, &profile, NULL);
	sigaction(SIGUSR1, &user, NULL);
	waiters_start();
	harness_spawn(WORKERS, computing_worker);
	harness_spawn(1, storming_worker);
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGPROF };
	REQUIRE("timer_create", timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
	harness_on_pause = set_timers;
	set_timers(0);
	return harness_main(commands, waiters_finish);
}

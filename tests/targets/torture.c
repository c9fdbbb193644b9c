/* SPDX-License-Identifier: Apache-2.0
 *
 * Threads that call sites of every form in tight loops, and check all that each
 * call leaves against a twin of the function that is never traced.
 *
 *   torture threads=N [hz=N] [churn=N] [turns=N] [trap=1] [mask=1]
 *     hz     SIGPROF so often a second, over all threads that run; its handler calls
 *            sites too
 *     churn  so many threads at a time that live for some sweeps only
 *     turns  a thread lets others run after so many sites, for more threads than
 *            processors
 *     trap   a handler of SIGTRAP of its own, and SIGTRAPs sent to itself
 *     mask   the handler of SIGPROF runs with SIGTRAP blocked
 *
 * Beside the commands of harness.h:
 *   forms        -> forms exact=N pun=N ...
 *   window N     -> window FORM FIRST COUNT   all threads call these sites only;
 *                   N is the form's index << 40 | first << 20 | count (0: all)
 */
#include "harness.h"

#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>

enum { GENERAL = 15, CALLS = 8 };
enum { R13 = 12, R15 = 14 };

COUNTER(sites);
COUNTER(signals);
COUNTER(threads);
COUNTER(traps);

/* As torture_drive.S has it: rax rbx rcx rdx rsi rdi rbp r8 ... r15. */
struct state {
	uint64_t general[GENERAL];
	uint64_t flags[1 + CALLS]; /* before, and after each call */
	uint64_t vectors[16][2];
};

struct site {
	void (*traced)(void);
	void (*twin)(void);
	const char *name;
};

struct scratch {
	struct state traced, twin;
	uint64_t counts[2];
	uint64_t random;
	unsigned long calls;
};

struct form {
	const char *name;
	const struct site *sites, *end;
};

void torture_drive(struct state *state, void (*function)(void));

#define FORMS(X) X(exact) X(pun) X(prefixed) X(near) X(nop) X(call) X(hop) X(sled) X(multi) X(plain)
#define DECLARE(form) extern const struct site torture_##form[], torture_##form##_end[];
FORMS(DECLARE)

/* What compilers make of functions: the twin is the same text under another name. */
#define SHAPES(name, n) \
	TRACED unsigned long name##n(unsigned long a, unsigned long b, double c) \
	{ \
		KEEP(); \
		if ((a & 7) == n % 8) \
			return a * (2 * n + 1) + (unsigned long)c; \
		for (unsigned long i = n % 4; i; i--) \
			b = (b << 3) ^ (a >> (i + n % 5)); \
		return a ^ (b + n); \
	} \
	TRACED unsigned long name##caller_##n(unsigned long a, unsigned long b, double c) \
	{ \
		unsigned long got = name##n(a + n, b, c * 2); \
		KEEP(); \
		return got + name##n(b, a, c) * 3; \
	} \
	TRACED unsigned long name##deep_##n(unsigned long a, unsigned long b, double c) \
	{ \
		unsigned long got = a % 6 ? name##deep_##n(a / 2, b + n, c + 1) : b; \
		KEEP(); \
		return got * 5 + n; \
	}
#define TWICE(n) SHAPES(compiled_, n) SHAPES(same_, n)
#define TEN(X, n) X(n##0) X(n##1) X(n##2) X(n##3) X(n##4) X(n##5) X(n##6) X(n##7) X(n##8) X(n##9)
/* From 100 on: the numbers are read as decimal ones, too. */
#define EACH(X) \
	TEN(X, 10) TEN(X, 11) TEN(X, 12) TEN(X, 13) TEN(X, 14) \
	TEN(X, 15) TEN(X, 16) TEN(X, 17) TEN(X, 18) TEN(X, 19)
EACH(TWICE)

typedef unsigned long shape(unsigned long, unsigned long, double);
#define PAIR(form, n) \
	{ (void (*)(void))compiled_##form##n, (void (*)(void))same_##form##n, "compiled_" #form #n }
#define ROWS(n) PAIR(, n), PAIR(caller_, n), PAIR(deep_, n),
static const struct site compiled[] = { EACH(ROWS) };

#define ROW(form) { #form, torture_##form, torture_##form##_end },
/* "any": the tables of all forms up to the plain one's lie one behind the other. */
static const struct form forms[] = {
	FORMS(ROW)
	{ "compiled", compiled, compiled + sizeof compiled / sizeof *compiled },
	{ "any", torture_exact, torture_multi_end },
};
enum { FORM_COUNT = sizeof forms / sizeof *forms, COMPILED = FORM_COUNT - 2 };

static uint64_t window;
static __thread struct scratch in_handler;
static __thread unsigned long traps_seen;
static int own_trap;
static size_t turns;

static uint64_t next_random(struct scratch *scratch)
{
	uint64_t x = scratch->random;
	x ^= x << 13;
	x ^= x >> 7;
	return scratch->random = x ^ x << 17;
}

__attribute__((cold, noinline)) static void report(const struct site *site, const struct scratch *scratch)
{
	static const char *const names[] = { "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8",
					     "r9",  "r10", "r11", "r12", "r13", "r14", "r15" };
	const uint64_t *got = (const uint64_t *)&scratch->traced, *want = (const uint64_t *)&scratch->twin;
	size_t i = 0;
	while (i < sizeof(struct state) / 8 && got[i] == want[i])
		i++;
	if (i < GENERAL)
		harness_bad(site->name, "%s got %#lx want %#lx", names[i], got[i], want[i]);
	if (i < GENERAL + 1 + CALLS)
		harness_bad(site->name, "flags after call %zu got %#lx want %#lx", i - GENERAL, got[i], want[i]);
	if (i < sizeof(struct state) / 8)
		harness_bad(site->name, "xmm%zu got %#lx want %#lx", (i - GENERAL - 1 - CALLS) / 2, got[i], want[i]);
	harness_bad(site->name, "executed %lu times, its twin %lu", scratch->counts[0], scratch->counts[1]);
}

static void check_driven(const struct site *site, struct scratch *scratch)
{
	struct state *traced = &scratch->traced, *twin = &scratch->twin;
	for (int i = 0; i < GENERAL; i++)
		traced->general[i] = next_random(scratch);
	traced->general[R13] = next_random(scratch) % 4; /* rounds of loops */
	traced->flags[0] = (next_random(scratch) & 0x8d5) | 0x202;
	for (int i = 0; i < 16; i++)
		traced->vectors[i][i & 1] = traced->general[i % GENERAL] * (2 * (unsigned)i + 1);
	memcpy(twin, traced, sizeof *twin);
	traced->general[R15] = (uint64_t)&scratch->counts[0];
	twin->general[R15] = (uint64_t)&scratch->counts[1];
	torture_drive(traced, site->traced);
	torture_drive(twin, site->twin);
	traced->general[R15] -= (uint64_t)&scratch->counts[0];
	twin->general[R15] -= (uint64_t)&scratch->counts[1];
	if (memcmp(traced, twin, sizeof *traced) || scratch->counts[0] != scratch->counts[1])
		report(site, scratch);
	scratch->calls += CALLS;
}

static void check_compiled(const struct site *site, struct scratch *scratch)
{
	unsigned long a = next_random(scratch), b = next_random(scratch);
	double c = (double)(a & 0xffff);
	unsigned long got = ((shape *)site->traced)(a, b, c), want = ((shape *)site->twin)(a, b, c);
	if (got != want)
		harness_bad(site->name, "got %#lx want %#lx", got, want);
	scratch->calls++;
}

static void check(const struct form *form, size_t index, struct scratch *scratch)
{
	if (form == &forms[COMPILED])
		check_compiled(&form->sites[index], scratch);
	else
		check_driven(&form->sites[index], scratch);
}

/* What is called now: (form, first index, count). */
static const struct form *look(size_t *first, size_t *count)
{
	uint64_t now = __atomic_load_n(&window, __ATOMIC_RELAXED);
	const struct form *form = &forms[now >> 40];
	*first = now >> 20 & 0xfffff;
	*count = now & 0xfffff;
	if (!*count)
		*count = (size_t)(form->end - form->sites) - *first;
	return form;
}

static void sweep(struct scratch *scratch)
{
	size_t first, count;
	const struct form *form = look(&first, &count);
	/* Each thread begins elsewhere, and few sites are called often. */
	size_t start = next_random(scratch) % count, rounds = count < 64 ? 64 : count;
	for (size_t i = 0; i < rounds; i++) {
		check(form, first + (start + i) % count, scratch);
		if (turns && i % turns == turns - 1)
			sched_yield();
	}
	COUNT(sites, scratch->calls);
	scratch->calls = 0;
}

/* An int3 that nobody has put there cannot come here; what comes is sent. */
static void on_trap(int number, siginfo_t *info, void *context)
{
	(void)context;
	if (number != SIGTRAP || info->si_code != SI_TKILL)
		harness_bad("stray trap", "code %d address %p", info->si_code, info->si_addr);
	traps_seen++;
}

static void trap_oneself(void)
{
	unsigned long before = traps_seen;
	syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGTRAP);
	CHECK("own SIGTRAP", *(volatile unsigned long *)&traps_seen, before + 1);
	COUNT(traps, 1);
}

static void worker(long index)
{
	struct scratch scratch = { .random = 0x9e3779b97f4a7c15u * (uint64_t)(index + 1) };
	for (unsigned long round = 0; harness_running(); round++) {
		sweep(&scratch);
		if (own_trap && round % 16 == 0)
			trap_oneself();
		harness_iterated();
	}
}

static void *short_life(void *argument)
{
	struct scratch scratch = { .random = 0xbf58476d1ce4e5b9u * (uint64_t)(uintptr_t)argument | 1 };
	sweep(&scratch);
	return argument;
}

static int churn;

static void churner(long index)
{
	(void)index;
	for (unsigned long number = 1; harness_running(); number += (unsigned long)churn) {
		pthread_t threads[16];
		for (int i = 0; i < churn; i++)
			REQUIRE("pthread_create", !pthread_create(&threads[i], NULL, short_life,
								   (void *)(number + (unsigned long)i)));
		for (int i = 0; i < churn; i++) {
			void *result;
			REQUIRE("pthread_join", !pthread_join(threads[i], &result));
			CHECK("result of a thread", (unsigned long)result, number + (unsigned long)i);
		}
		COUNT(threads, churn);
	}
}

static void on_profile(int number)
{
	int error = errno;
	size_t first, count;
	const struct form *form = look(&first, &count);
	if (!in_handler.random)
		in_handler.random = 0x94d049bb133111ebu ^ (uint64_t)(uintptr_t)&in_handler;
	CHECK("signal", number, SIGPROF);
	check(form, first + next_random(&in_handler) % count, &in_handler);
	COUNT(signals, 1);
	errno = error;
}

enum { MOST_TIMERS = 8 };
static timer_t timers[MOST_TIMERS];
static int timer_count;
static long interval;

static void set_timers(int paused)
{
	struct itimerspec period = { { 0, paused ? 0 : interval }, { 0, paused ? 0 : interval } };
	for (int i = 0; i < timer_count; i++)
		REQUIRE("timer_settime", !timer_settime(timers[i], 0, &period, NULL));
}

/* Timers of the process: since Linux 6.4 whatever thread of it runs when one expires
 * gets its signal. One a processor. */
static void start_timers(long hz)
{
	cpu_set_t all;
	REQUIRE("sched_getaffinity", !sched_getaffinity(0, sizeof all, &all));
	for (int cpu = 0; cpu < CPU_SETSIZE && timer_count < MOST_TIMERS; cpu++) {
		cpu_set_t one;
		struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGPROF };
		if (!CPU_ISSET(cpu, &all))
			continue;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		REQUIRE("sched_setaffinity", !sched_setaffinity(0, sizeof one, &one));
		REQUIRE("timer_create", !timer_create(CLOCK_MONOTONIC, &event, &timers[timer_count]));
		timer_count++;
	}
	interval = 1000000000 / hz * timer_count;
	set_timers(0);
	REQUIRE("sched_setaffinity", !sched_setaffinity(0, sizeof all, &all));
	harness_on_pause = set_timers;
}

static void handle_signals(int mask)
{
	struct sigaction action = { .sa_flags = SA_RESTART };
	action.sa_handler = on_profile;
	sigemptyset(&action.sa_mask);
	if (mask)
		sigaddset(&action.sa_mask, SIGTRAP);
	REQUIRE("sigaction", !sigaction(SIGPROF, &action, NULL));
	if (own_trap) {
		sigemptyset(&action.sa_mask);
		action.sa_flags = SA_RESTART | SA_SIGINFO;
		action.sa_sigaction = on_trap;
		REQUIRE("sigaction", !sigaction(SIGTRAP, &action, NULL));
	}
}

static void tell_forms(long argument)
{
	char line[512] = "forms";
	(void)argument;
	for (int i = 0; i < FORM_COUNT; i++) {
		size_t at = strlen(line);
		snprintf(line + at, sizeof line - at, " %s=%zu", forms[i].name, (size_t)(forms[i].end - forms[i].sites));
	}
	harness_reply("%s", line);
}

static void set_window(long argument)
{
	size_t first, count;
	REQUIRE("form", argument >> 40 < FORM_COUNT);
	__atomic_store_n(&window, (uint64_t)argument, __ATOMIC_RELAXED);
	const struct form *form = look(&first, &count);
	REQUIRE("window", first + count <= (size_t)(form->end - form->sites));
	harness_reply("window %s %zu %zu", form->name, first, count);
}

/* Symbols bound and pages touched, so that what is called later is the same each time. */
static void warm_up(void)
{
	struct scratch scratch = { .random = 1 };
	for (int i = 0; i < FORM_COUNT; i++)
		for (size_t j = 0; j < (size_t)(forms[i].end - forms[i].sites); j++)
			(i == COMPILED ? check_compiled : check_driven)(&forms[i].sites[j], &scratch);
}

int main(int argc, char **argv)
{
	static const harness_command commands[] = { { "forms", tell_forms }, { "window", set_window }, { 0, 0 } };
	long threads = 1, hz = 0;
	int mask = 0;
	for (int i = 1; i < argc; i++) {
		char *value = strchr(argv[i], '=');
		REQUIRE("argument NAME=NUMBER", value);
		long number = strtol(value + 1, NULL, 0);
		*value = 0;
		if (!strcmp(argv[i], "threads"))
			threads = number;
		else if (!strcmp(argv[i], "hz"))
			hz = number;
		else if (!strcmp(argv[i], "churn"))
			churn = (int)number;
		else if (!strcmp(argv[i], "turns"))
			turns = (size_t)number;
		else if (!strcmp(argv[i], "trap"))
			own_trap = (int)number;
		else if (!strcmp(argv[i], "mask"))
			mask = (int)number;
		else
			harness_bad("argument", "%s", argv[i]);
	}
	REQUIRE("threads and churn", threads > 0 && threads <= 120 && churn >= 0 && churn <= 16);
#ifdef IMPORTS_SIGPROCMASK
	/* Asks only: what counts is that the program could. */
	REQUIRE("sigprocmask", !sigprocmask(SIG_BLOCK, NULL, NULL));
#endif
	warm_up();
	handle_signals(mask);
	harness_spawn((int)threads, worker);
	if (churn)
		harness_spawn(1, churner);
	if (hz)
		start_timers(hz);
	return harness_main(commands, NULL);
}

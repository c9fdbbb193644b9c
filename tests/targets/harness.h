/* SPDX-License-Identifier: Apache-2.0
 *
 * What every program in this folder shares: worker threads that check their
 * own results, counters of calls that are exact, and a line protocol on stdin.
 *
 *   program: ready PID                       all workers run
 *   calls        -> calls iterations=N calls_leaf=N ...
 *   pause        -> paused                   every worker is parked at its gate
 *   resume       -> resumed
 *   burst N      -> burst done N             main made exactly N calls of a leaf
 *   quit or EOF  -> ok ITERATIONS calls_leaf=N ...   and exit status 0
 *   a wrong result: BAD what got want, exit status 3
 *
 * Counters and gates are here so that a test can compare a trace with the
 * truth to the last call: pause, read the counters, patch, resume, pause, read.
 */
#ifndef TARGETS_HARNESS_H
#define TARGETS_HARNESS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "harness_traced.h"

#ifdef __cplusplus
extern "C" {
#endif
typedef struct harness_counter {
	const char *name;
	unsigned long value;
} harness_counter;

/* The linker collects the counters; __start_ and __stop_ bound them. */
extern harness_counter *const __start_harness_counters[] __attribute__((visibility("hidden")));
extern harness_counter *const __stop_harness_counters[] __attribute__((visibility("hidden")));
#ifdef __cplusplus
}
#endif

#define COUNTER_NAMED(variable, text) \
	static harness_counter variable = { text, 0 }; \
	static harness_counter *const variable##_entry \
		__attribute__((section("harness_counters"), used)) = &variable
/* COUNTER(leaf) makes the counter reported as calls_leaf. */
#define COUNTER(function) COUNTER_NAMED(calls_##function, "calls_" #function)
#define COUNT(function, n) \
	((void)__atomic_add_fetch(&calls_##function.value, (unsigned long)(n), __ATOMIC_RELAXED))
/* Counts one call of the function and makes it. */
#define CALL(function, ...) (COUNT(function, 1), function(__VA_ARGS__))

COUNTER_NAMED(harness_iterations, "iterations");

typedef struct harness_command {
	const char *name;
	void (*run)(long argument);
} harness_command;

static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	int spawned, started, parked, left;
	int stop, pause; /* also read outside the lock */
	pthread_t threads[128];
} harness = { PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0, 0, 0, 0, 0, { 0 } };

/* Called around pause and resume when set; for programs that have timers. */
static void (*harness_on_pause)(int paused) __attribute__((unused));

/* One write() per line: threads, handlers and children may all report. */
__attribute__((format(printf, 1, 2), unused)) static void harness_reply(const char *format, ...)
{
	char line[8192];
	va_list arguments;
	va_start(arguments, format);
	int length = vsnprintf(line, sizeof line - 1, format, arguments);
	va_end(arguments);
	if (length > (int)sizeof line - 2)
		length = (int)sizeof line - 2;
	line[length++] = '\n';
	for (int done = 0; done < length;) {
		ssize_t wrote = write(1, line + done, (size_t)(length - done));
		if (wrote < 0 && errno != EINTR)
			_exit(4);
		done += wrote > 0 ? (int)wrote : 0;
	}
}

__attribute__((format(printf, 2, 3), noreturn, unused, cold)) static void
harness_bad(const char *what, const char *format, ...)
{
	char values[512];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(values, sizeof values, format, arguments);
	va_end(arguments);
	harness_reply("BAD %s %s", what, values);
	_exit(3);
}

#define CHECK(what, got, want) \
	do { \
		unsigned long long got_ = (unsigned long long)(got), want_ = (unsigned long long)(want); \
		if (got_ != want_) \
			harness_bad(what, "got %#llx want %#llx", got_, want_); \
	} while (0)
#define CHECK_FP(what, got, want) \
	do { \
		long double got_ = (long double)(got), want_ = (long double)(want); \
		if (!(got_ == want_)) \
			harness_bad(what, "got %La want %La", got_, want_); \
	} while (0)
#define REQUIRE(what, condition) \
	do { \
		if (!(condition)) \
			harness_bad(what, "failed: %s (errno %d)", #condition, errno); \
	} while (0)

__attribute__((noinline, cold, unused)) static void harness_gate(void)
{
	pthread_mutex_lock(&harness.lock);
	harness.parked++;
	pthread_cond_broadcast(&harness.changed);
	while (harness.pause && !harness.stop)
		pthread_cond_wait(&harness.changed, &harness.lock);
	harness.parked--;
	pthread_cond_broadcast(&harness.changed);
	pthread_mutex_unlock(&harness.lock);
}

/* The condition of every worker's loop. */
__attribute__((always_inline, unused)) static inline int harness_running(void)
{
	if (__builtin_expect(__atomic_load_n(&harness.pause, __ATOMIC_RELAXED), 0))
		harness_gate();
	return !__atomic_load_n(&harness.stop, __ATOMIC_RELAXED);
}

/* The end of every worker's iteration: all checks of it passed. */
__attribute__((always_inline, unused)) static inline void harness_iterated(void)
{
	__atomic_add_fetch(&harness_iterations.value, 1, __ATOMIC_RELAXED);
}

typedef struct harness_worker {
	void (*run)(long index);
	long index;
} harness_worker;

__attribute__((unused)) static void *harness_worker_start(void *argument)
{
	harness_worker worker = *(harness_worker *)argument;
	free(argument);
	pthread_mutex_lock(&harness.lock);
	harness.started++;
	pthread_cond_broadcast(&harness.changed);
	pthread_mutex_unlock(&harness.lock);
	worker.run(worker.index);
	pthread_mutex_lock(&harness.lock);
	harness.left++;
	pthread_cond_broadcast(&harness.changed);
	pthread_mutex_unlock(&harness.lock);
	return NULL;
}

/* Starts `count` workers; each gets its index. */
__attribute__((unused)) static void harness_spawn(int count, void (*run)(long index))
{
	for (int i = 0; i < count; i++) {
		harness_worker *worker = (harness_worker *)malloc(sizeof *worker);
		worker->run = run;
		worker->index = i;
		int error = pthread_create(&harness.threads[harness.spawned], NULL, harness_worker_start, worker);
		if (error)
			harness_bad("pthread_create", "got %d want 0", error);
		harness.spawned++;
	}
}

static inline void harness_milliseconds(long milliseconds)
{
	struct timespec rest = { milliseconds / 1000, milliseconds % 1000 * 1000000 };
	while (nanosleep(&rest, &rest) && errno == EINTR)
		;
}

static void harness_report(const char *head)
{
	char line[8000];
	int length = snprintf(line, sizeof line, "%s", head);
	harness_counter *const *counter = __start_harness_counters;
	for (; counter < __stop_harness_counters; counter++) {
		/* "ok N calls_..." has the iterations in front already. */
		if (*counter == &harness_iterations && strncmp(head, "ok ", 3) == 0)
			continue;
		length += snprintf(line + length, sizeof line - (size_t)length, " %s=%lu", (*counter)->name,
				   __atomic_load_n(&(*counter)->value, __ATOMIC_RELAXED));
	}
	harness_reply("%s", line);
}

static void harness_set_pause(int paused)
{
	if (harness_on_pause && paused)
		harness_on_pause(1);
	pthread_mutex_lock(&harness.lock);
	__atomic_store_n(&harness.pause, paused, __ATOMIC_RELAXED);
	pthread_cond_broadcast(&harness.changed);
	while (paused ? harness.parked + harness.left < harness.spawned : harness.parked > 0)
		pthread_cond_wait(&harness.changed, &harness.lock);
	pthread_mutex_unlock(&harness.lock);
	if (harness_on_pause && !paused)
		harness_on_pause(0);
	/* Signals sent before may still be on their way to parked threads. */
	if (harness_on_pause && paused)
		harness_milliseconds(20);
}

/* A line of stdin without stdio: no lock is held while main waits. */
static int harness_read_line(char *line, int size)
{
	int length = 0;
	while (length < size - 1) {
		char byte;
		ssize_t got = read(0, &byte, 1);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return 0;
		if (byte == '\n')
			break;
		line[length++] = byte;
	}
	line[length] = 0;
	return 1;
}

/* Says ready and serves commands until quit; then joins and says ok.
 * `commands` ends with a null name. `finish` (may be null) runs after the
 * workers ended, for checks of totals. */
__attribute__((unused)) static int harness_main(const harness_command *commands, void (*finish)(void))
{
	pthread_mutex_lock(&harness.lock);
	while (harness.started < harness.spawned)
		pthread_cond_wait(&harness.changed, &harness.lock);
	pthread_mutex_unlock(&harness.lock);
	harness_reply("ready %d", (int)getpid());

	char line[256];
	while (harness_read_line(line, (int)sizeof line) && strcmp(line, "quit")) {
		char *space = strchr(line, ' ');
		long argument = space ? strtol(space + 1, NULL, 0) : 0;
		const harness_command *command = commands;
		if (space)
			*space = 0;
		while (command && command->name && strcmp(command->name, line))
			command++;
		if (command && command->name)
			command->run(argument);
		else if (!strcmp(line, "calls"))
			harness_report("calls");
		else if (!strcmp(line, "pause") || !strcmp(line, "resume")) {
			harness_set_pause(line[0] == 'p');
			harness_reply("%sd", line);
		} else
			harness_reply("unknown %s", line);
	}

	if (harness_on_pause)
		harness_on_pause(1);
	pthread_mutex_lock(&harness.lock);
	__atomic_store_n(&harness.stop, 1, __ATOMIC_RELAXED);
	pthread_cond_broadcast(&harness.changed);
	pthread_mutex_unlock(&harness.lock);
	for (int i = 0; i < harness.spawned; i++)
		pthread_join(harness.threads[i], NULL);
	if (finish)
		finish();
	char head[32];
	snprintf(head, sizeof head, "ok %lu", harness_iterations.value);
	harness_report(head);
	return 0;
}

#endif

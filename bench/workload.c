/* workload.c - the program that the benches trace.
 *
 * It speaks the line protocol of tests/support/target_process.py: prints
 * "ready PID", then answers one line to each command on stdin.
 *
 *   measure leaf|limit BATCHES CALLS PAUSE_US
 *        Calls the function BATCHES times CALLS times. Answers with the median,
 *        the tenth percentile and the minimum of a batch in ns per call. After
 *        each batch it spins for PAUSE_US, so that a reader of the records can
 *        keep up.
 *   rate CALLS_PER_SECOND MILLISECONDS
 *        Calls leaf at that rate (0: as fast as it can) and never sleeps.
 *   storm MILLISECONDS
 *        Calls leaf as fast as it can. Answers with a pair of numbers for every 5 ms:
 *        calls made, and processor time that they took, in microseconds.
 *   quit
 *
 * `leaf` is what gets traced, a hot leaf of about 2 ns. `limit` is the same
 * with what no tracer of entries and exits can do without, written by hand and
 * inlined: two rdtsc and two stores of 16 bytes into a 4 MiB ring of the thread.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#define TRACED __attribute__((noinline, noclone, noipa, used))
#define RING_BYTES (4u << 20)
#define BATCHES 65536

struct event {
	uint64_t ticks, word;
};

static __thread struct event *ring;
static __thread uint64_t ring_position;

#define RECORD(what)                                                                     \
	do {                                                                             \
		struct event *event =                                                    \
			&ring[ring_position++ & (RING_BYTES / sizeof(struct event) - 1)];  \
		event->ticks = __rdtsc();                                                \
		event->word = (what);                                                    \
	} while (0)

TRACED uint32_t leaf(uint32_t x)
{
	x ^= x >> 13;
	x *= 0x5bd1e995u;
	x ^= x >> 15;
	return x;
}

TRACED uint32_t limit(uint32_t x)
{
	RECORD(0x1000);
	x ^= x >> 13;
	x *= 0x5bd1e995u;
	x ^= x >> 15;
	RECORD(0x1001);
	return x;
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

static void spin_until(uint64_t when)
{
	while (now_ns() < when)
		_mm_pause();
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static volatile uint32_t sink;

static void measure(const char *name, long batches, long calls, long pause_us)
{
	static double costs[BATCHES];
	const int is_limit = !strcmp(name, "limit");
	uint32_t x = 1;

	if (batches > BATCHES)
		batches = BATCHES;
	for (long batch = 0; batch < batches; batch++) {
		uint64_t start = now_ns(), end;

		if (is_limit)
			for (long i = 0; i < calls; i++)
				x = limit(x);
		else
			for (long i = 0; i < calls; i++)
				x = leaf(x);
		end = now_ns();
		costs[batch] = (double)(end - start) / (double)calls;
		if (pause_us)
			spin_until(end + (uint64_t)pause_us * 1000);
	}
	sink = x;
	qsort(costs, (size_t)batches, sizeof *costs, by_value);
	printf("measured median=%.4f p10=%.4f min=%.4f calls=%ld\n", costs[batches / 2],
	       costs[batches / 10], costs[0], batches * calls);
}

static void rate(double per_second, long milliseconds)
{
	uint64_t start = now_ns(), end = start + (uint64_t)milliseconds * 1000000, now = start;
	uint64_t calls = 0, late = 0;
	uint32_t x = 1;

	while (now < end) {
		/* A tenth of a millisecond's worth at a time. */
		uint64_t due = per_second > 0 ? (uint64_t)((double)(now - start) * per_second / 1e9)
					      : calls + 2000;

		if (due > calls + 2000) {
			due = calls + 2000;
			late++;
		}
		while (calls < due) {
			x = leaf(x);
			calls++;
		}
		if (per_second > 0)
			spin_until(now + 20000);
		now = now_ns();
	}
	sink = x;
	printf("rated calls=%llu seconds=%.6f behind=%llu\n", (unsigned long long)calls,
	       (double)(now - start) / 1e9, (unsigned long long)late);
}

#define SLICE_NS 5000000ull
#define SLICES 4096

static uint64_t cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

static void storm(long milliseconds)
{
	static uint64_t calls[SLICES], cpu[SLICES];
	uint64_t start = now_ns(), now = start, before = cpu_ns(), slices, slice = 0;
	uint32_t x = 1;

	slices = (uint64_t)milliseconds * 1000000 / SLICE_NS;
	if (slices > SLICES)
		slices = SLICES;
	memset(calls, 0, sizeof calls);
	memset(cpu, 0, sizeof cpu);
	while (slice < slices) {
		uint64_t after;

		for (int i = 0; i < 20000; i++)
			x = leaf(x);
		now = now_ns();
		after = cpu_ns();
		calls[slice] += 20000;
		cpu[slice] += after - before;
		before = after;
		slice = (now - start) / SLICE_NS;
	}
	sink = x;
	printf("stormed");
	for (uint64_t i = 0; i < slices; i++)
		printf(" %llu %llu", (unsigned long long)calls[i], (unsigned long long)(cpu[i] / 1000));
	printf("\n");
}

int main(void)
{
	char line[256], name[32];
	long a, b, c;
	double r;

	ring = mmap(NULL, RING_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (ring == MAP_FAILED)
		return 2;
	memset(ring, 1, RING_BYTES);
	printf("ready %d\n", getpid());
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		if (sscanf(line, "measure %31s %ld %ld %ld", name, &a, &b, &c) == 4 && a > 0 && b > 0)
			measure(name, a, b, c);
		else if (sscanf(line, "rate %lf %ld", &r, &a) == 2)
			rate(r, a);
		else if (sscanf(line, "storm %ld", &a) == 1)
			storm(a);
		else if (!strncmp(line, "quit", 4))
			break;
		else
			printf("unknown %s", line);
		fflush(stdout);
	}
	printf("ok 0\n");
	return 0;
}

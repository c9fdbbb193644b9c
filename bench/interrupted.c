/* interrupted.c - threads that call nothing and note when they did not run.
 *
 * Linked with a generated program of tests/targets (gen_many.py), whose threads
 * call many functions; these here come in addition, touch no function that is
 * traced, and read the time stamp counter in a loop. Two reads further apart than
 * LEAST are a gap; what of it was not waiting for a processor is a stop. What is found lies in shared memory, which the environment
 * names (INTERRUPTED_FILE, INTERRUPTED_THREADS), and is read by interruption.py
 * meanwhile, so that neither side needs to call the other.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

/* The layout is interruption.py's too. */
enum { PHASES = 8, BUCKETS = 512, THREADS = 8 };
#define LEAST 5e3 /* ns: an interrupt of the timer takes less */
#define WORTH_ASKING 2e4

struct phase {
	double watched, longest, longest_stop; /* ns */
	uint64_t over_100us, over_1ms;
	uint64_t buckets[BUCKETS]; /* sixteen to an octave, from LEAST on */
};

struct spinner {
	volatile uint64_t tid;
	struct phase phases[PHASES];
};

struct shared {
	/* Written by the bench: which phase counts now, and whether to rest. */
	volatile uint64_t phase, rests;
	struct spinner spinners[THREADS];
};

static struct shared *shared;
static double ns_per_tick;
static __thread int schedstat = -1;
static __thread double waited_before;

static double clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static void calibrate(void)
{
	const double begun = clock_ns();
	const uint64_t ticks = __rdtsc();
	double now;

	do
		now = clock_ns();
	while (now < begun + 20e6);
	ns_per_tick = (now - begun) / (double)(__rdtsc() - ticks);
}

/* How long this thread has been ready to run without a processor since the last
 * question, in ns: the second word of its schedstat (Documentation/scheduler). */
static double waited(void)
{
	char text[96];
	ssize_t length = pread(schedstat, text, sizeof text - 1, 0);
	char *second;
	double before = waited_before;

	if (length <= 0)
		return 0;
	text[length] = 0;
	strtoull(text, &second, 10);
	waited_before = (double)strtoull(second, NULL, 10);
	return waited_before - before;
}

static void note(struct phase *phase, double ns)
{
	double of = ns / LEAST;
	unsigned bucket = 0;

	if (of < 1)
		return;
	if (ns > phase->longest)
		phase->longest = ns;
	phase->over_100us += ns > 1e5;
	phase->over_1ms += ns > 1e6;
	if (ns > WORTH_ASKING) {
		double stop = ns - waited();

		if (stop > phase->longest_stop)
			phase->longest_stop = stop;
	}
	for (; of >= 2; of /= 2)
		bucket += 16;
	bucket += (unsigned)((of - 1) * 16);
	phase->buckets[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
}

/* A thread of real time priority must leave a tenth of its processor to others, or
 * the kernel takes it away for 50 ms a second. How late the timer wakes it is a gap
 * like any other. */
static void rest(struct phase *phase)
{
	const double until = clock_ns() + 1e6;
	const struct timespec when = { (time_t)(until / 1e9),
				       (long)(until - (double)(time_t)(until / 1e9) * 1e9) };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL))
		;
	note(phase, clock_ns() - until);
}

static void *spin(void *argument)
{
	struct spinner *own = argument;
	const uint64_t least = (uint64_t)(LEAST / ns_per_tick);
	const uint64_t millisecond = (uint64_t)(1e6 / ns_per_tick);
	uint64_t last, since, asked_at, rested, phase = shared->phase;

	schedstat = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
	waited();
	own->tid = (uint64_t)syscall(SYS_gettid);
	last = since = asked_at = rested = __rdtsc();
	for (;;) {
		uint64_t now = __rdtsc(), asked = shared->phase;

		/* A gap belongs to the phase in which it began. */
		if (now - last > least)
			note(&own->phases[phase % PHASES], (double)(now - last) * ns_per_tick);
		last = now;
		if (asked != phase) {
			own->phases[phase % PHASES].watched += (double)(now - since) * ns_per_tick;
			since = now;
			phase = asked;
		}
		/* So that short waits do not add up to what is taken off a stop. */
		if (now - asked_at > millisecond) {
			waited();
			asked_at = now;
		}
		if (shared->rests && now - rested > 9 * millisecond) {
			rest(&own->phases[phase % PHASES]);
			rested = last = __rdtsc();
		}
	}
	return NULL;
}

__attribute__((constructor)) static void start(void)
{
	const char *path = getenv("INTERRUPTED_FILE"), *threads = getenv("INTERRUPTED_THREADS");
	long count = threads ? strtol(threads, NULL, 10) : 1;
	int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	pthread_t thread;

	if (fd < 0)
		return;
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (shared == MAP_FAILED)
		abort();
	close(fd);
	calibrate();
	for (long i = 0; i < count && i < THREADS; i++)
		if (pthread_create(&thread, NULL, spin, &shared->spinners[i]))
			abort();
}

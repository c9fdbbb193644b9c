/* SPDX-License-Identifier: Apache-2.0
 *
 * Fibers (makecontext, swapcontext) that yield deep inside traced calls and go
 * on in whichever thread takes them next. Some have 16 KiB of stack in all;
 * some call traced functions with 2 KiB left above a guard page.
 */
#include "harness.h"

#include <alloca.h>
#include <stdint.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { FIBERS = 48, THREADS = 4, STACK = 16384, PAGE_SIZE = 4096, SLACK = 2048 };

COUNTER(leaf);
COUNTER(fiber_leaf);
COUNTER(fiber_float);
COUNTER(fiber_descend);
COUNTER(fiber_round);

typedef struct fiber {
	ucontext_t context, *back;
	char *stack; /* its lowest usable byte */
	long index, rounds;
	int tight;
} fiber;

static fiber fibers[FIBERS];
static int queue[FIBERS], queue_head, queue_length;
static pthread_mutex_t queue_lock = PTHREAD_MUTEX_INITIALIZER;

TRACED long leaf(long x)
{
	KEEP();
	return x * 13 + 5;
}

TRACED long fiber_leaf(long x)
{
	KEEP();
	return x * 11 + 3;
}

TRACED double fiber_float(double x, float y)
{
	KEEP();
	return x * 2 + (double)y;
}

static void yield(fiber *self)
{
	/* Which thread runs us is known only through `back`, set anew each time. */
	swapcontext(&self->context, self->back);
}

/* Entered in one thread and left in another, `depth` frames of it at once. */
TRACED long fiber_descend(fiber *self, long depth)
{
	COUNT(fiber_descend, 1);
	if (depth == 0) {
		yield(self);
		return self->index;
	}
	long got = fiber_descend(self, depth - 1);
	KEEP();
	return got + CALL(fiber_leaf, depth) - (depth * 11 + 3) + 1;
}

TRACED long fiber_round(fiber *self, long round)
{
	volatile char *pad = NULL;
	if (self->tight) {
		/* Leave SLACK bytes between the stack pointer and the guard page. */
		long left = (char *)__builtin_frame_address(0) - self->stack;
		if (left > SLACK + 512) {
			pad = alloca((size_t)(left - SLACK - 256));
			pad[0] = (char)round;
		}
	}
	CHECK("fiber_leaf", CALL(fiber_leaf, round), round * 11 + 3);
	CHECK_FP("fiber_float", CALL(fiber_float, (double)round, 0.5f), (double)round * 2 + 0.5);
	long depth = self->tight ? 3 : round % 20;
	CHECK("fiber_descend", fiber_descend(self, depth), self->index + depth);
	if (pad)
		CHECK("pad", pad[0], (char)round);
	yield(self);
	return round + 1;
}

static void fiber_main(unsigned high, unsigned low)
{
	fiber *self = (fiber *)(((uintptr_t)high << 32) | low);
	for (;;)
		CHECK("fiber_round", CALL(fiber_round, self, self->rounds), ++self->rounds);
}

static void make_fiber(long index)
{
	fiber *self = &fibers[index];
	char *area = mmap(NULL, STACK + PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	REQUIRE("mmap", area != MAP_FAILED && mprotect(area, PAGE_SIZE, PROT_NONE) == 0);
	self->stack = area + PAGE_SIZE;
	self->index = index;
	self->tight = index % 3 == 0;
	getcontext(&self->context);
	self->context.uc_stack.ss_sp = self->stack;
	self->context.uc_stack.ss_size = STACK;
	self->context.uc_link = NULL;
	makecontext(&self->context, (void (*)(void))fiber_main, 2, (unsigned)((uintptr_t)self >> 32),
		    (unsigned)(uintptr_t)self);
	queue[queue_length++] = (int)index;
}

static int take(void)
{
	int index = -1;
	pthread_mutex_lock(&queue_lock);
	if (queue_length) {
		index = queue[queue_head];
		queue_head = (queue_head + 1) % FIBERS;
		queue_length--;
	}
	pthread_mutex_unlock(&queue_lock);
	return index;
}

static void give(int index)
{
	pthread_mutex_lock(&queue_lock);
	queue[(queue_head + queue_length++) % FIBERS] = index;
	pthread_mutex_unlock(&queue_lock);
}

static void worker(long index)
{
	(void)index;
	ucontext_t here;
	while (harness_running()) {
		int next = take();
		if (next < 0)
			continue;
		fibers[next].back = &here;
		swapcontext(&here, &fibers[next].context);
		give(next);
		harness_iterated();
	}
}

static void burst(long n)
{
	for (long i = 0; i < n; i++)
		CHECK("leaf", CALL(leaf, i), i * 13 + 5);
	harness_reply("burst done %ld", n);
}

static void finish(void)
{
	for (int i = 0; i < FIBERS; i++)
		REQUIRE("every fiber ran", fibers[i].rounds > 0);
}

int main(void)
{
	static const harness_command commands[] = { { "burst", burst }, { NULL, NULL } };
	for (long i = 0; i < FIBERS; i++)
		make_fiber(i);
	harness_spawn(THREADS, worker);
	return harness_main(commands, finish);
}

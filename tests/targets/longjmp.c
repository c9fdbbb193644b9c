/* SPDX-License-Identifier: Apache-2.0
 *
 * longjmp over many frames, with and without the signal mask, out of signal
 * handlers, and back and forth between the same frames.
 */
#include "harness.h"

#include <setjmp.h>
#include <signal.h>

COUNTER(leaf);
COUNTER(descend);
COUNTER(jump_out);
COUNTER(jump_masked);
COUNTER(jump_builtin);
COUNTER(jump_from_handler);
COUNTER(handler);
COUNTER(jump_repeated);

static __thread sigjmp_buf out;

TRACED long leaf(long x)
{
	KEEP();
	return x ^ 0x5a5a;
}

/* Never returns the normal way. */
TRACED long descend(long depth, long value)
{
	COUNT(descend, 1);
	if (depth == 0)
		siglongjmp(out, (int)value);
	long got = descend(depth - 1, value);
	KEEP();
	return got + leaf(depth);
}

TRACED long jump_out(long depth, long value)
{
	int got = sigsetjmp(out, 0);
	if (got)
		return got;
	descend(depth, value);
	return -1;
}

TRACED long jump_masked(long depth, long value)
{
	int got = sigsetjmp(out, 1);
	if (got)
		return got;
	descend(depth, value);
	return -1;
}

static __thread jmp_buf plain;

/* A plain setjmp, jumped to `rounds` times from a frame that is overwritten each time. */
TRACED long jump_repeated(long rounds)
{
	volatile long sum = 0;
	int round = setjmp(plain);
	sum += round;
	if (round < rounds) {
		sum += leaf(round) - (round ^ 0x5a5a);
		longjmp(plain, round + 1);
	}
	return sum;
}

/* Clang has the builtins for few architectures. */
#if defined(__clang__) && defined(__aarch64__)
#define __builtin_setjmp _setjmp
#define __builtin_longjmp longjmp
typedef jmp_buf builtin_buffer;
#else
typedef void *builtin_buffer[5];
#endif

TRACED long builtin_descend(builtin_buffer buffer, long depth)
{
	if (depth == 0)
		__builtin_longjmp(buffer, 1);
	long got = builtin_descend(buffer, depth - 1);
	KEEP();
	return got + 1;
}

TRACED long jump_builtin(long depth)
{
	builtin_buffer buffer;
	volatile long local = depth + 3;
	if (__builtin_setjmp(buffer))
		return local;
	builtin_descend(buffer, depth);
	return -1;
}

/* The handler runs on this thread's stack and jumps away over its own frame. */
TRACED void handler(int number)
{
	COUNT(handler, 1);
	CHECK("signal", number, SIGUSR2);
	descend(3, 41);
}

TRACED long jump_from_handler(void)
{
	int got = sigsetjmp(out, 1);
	if (got)
		return got;
	raise(SIGUSR2);
	return -1;
}

static void worker(long index)
{
	for (long x = index; harness_running(); x++) {
		CHECK("jump_out", CALL(jump_out, x % 50, x % 1000 + 1), x % 1000 + 1);
		CHECK("jump_masked", CALL(jump_masked, x % 9, x % 100 + 1), x % 100 + 1);
		CHECK("jump_builtin", CALL(jump_builtin, x % 20), x % 20 + 3);
		CHECK("jump_from_handler", CALL(jump_from_handler), 41);
		CHECK("jump_repeated", CALL(jump_repeated, x % 10), (x % 10) * (x % 10 + 1) / 2);
		sigset_t mask;
		pthread_sigmask(SIG_SETMASK, NULL, &mask);
		CHECK("mask", sigismember(&mask, SIGUSR2), 0);
		harness_iterated();
	}
}

static void burst(long n)
{
	for (long i = 0; i < n; i++)
		CHECK("leaf", CALL(leaf, i), i ^ 0x5a5a);
	harness_reply("burst done %ld", n);
}

/* Exactly n jumps over five frames of descend each. */
static void jumps(long n)
{
	for (long i = 0; i < n; i++)
		CHECK("jump_out", CALL(jump_out, 4, i % 100 + 1), i % 100 + 1);
	harness_reply("jumps done %ld", n);
}

int main(void)
{
	static const harness_command commands[] = { { "burst", burst }, { "jumps", jumps }, { NULL, NULL } };
	struct sigaction action = { .sa_handler = handler };
	sigaction(SIGUSR2, &action, NULL);
	harness_spawn(4, worker);
	return harness_main(commands, NULL);
}

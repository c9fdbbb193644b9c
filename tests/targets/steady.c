/* SPDX-License-Identifier: Apache-2.0
 *
 * Threads that hold values in all registers, do nothing else, and look whether they are
 * still there: whoever borrows such a thread must give everything back. Their signal
 * masks and their alternate stacks are looked at too. main waits in poll.
 *
 *   tids -> tids N N   the threads
 */
#include <poll.h>
#include <unistd.h>

/* Not in read, which has no end: threads in such calls are borrowed first. */
static ssize_t polled_read(int fd, void *data, size_t size)
{
	struct pollfd input = { .fd = fd, .events = POLLIN };
	while (poll(&input, 1, -1) <= 0)
		;
	return read(fd, data, size);
}
#define read polled_read
#include "harness.h"

#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>

typedef unsigned long word;
enum { WORKERS = 2, ROUNDS = 20000 };

struct registers {
	word general[15], flags;
	unsigned mxcsr;
	unsigned short control, pad;
	unsigned char x87[16], pad2[40];
	unsigned char vectors[32][64];
	word masks[8];
};
struct state {
	struct registers before, after;
};
_Static_assert(offsetof(struct registers, x87) == 136, "steady_asm.S");
_Static_assert(offsetof(struct registers, vectors) == 192, "steady_asm.S");
_Static_assert(offsetof(struct state, after) == 192 + 32 * 64 + 64, "steady_asm.S");

word steady_hold_ymm(struct state *state, word rounds);
word steady_hold_zmm(struct state *state, word rounds);

COUNTER(hold);
static int tids[WORKERS];

static void fill(struct state *state, word *seed)
{
	unsigned char *bytes = (unsigned char *)&state->before;
	for (size_t i = 0; i < sizeof state->before; i++) {
		*seed = *seed * 6364136223846793005ul + 1442695040888963407ul;
		bytes[i] = (unsigned char)(*seed >> 56);
	}
	/* Round up, all exceptions masked; a normal number. */
	state->before.mxcsr = 0x5f80;
	state->before.control = 0x0b7f;
	memcpy(state->before.x87, "\x01\x23\x45\x67\x89\xab\xcd\xef\xff\x3f", 10);
	for (int i = 0; i < 8; i++)
		state->before.masks[i] &= 0xffff;
}

static void compare(const struct state *state, int vectors, int bytes)
{
	const struct registers *a = &state->before, *b = &state->after;
	for (int i = 0; i < 15; i++)
		CHECK("general register", b->general[i], a->general[i]);
	for (int i = 0; i < vectors; i++)
		if (memcmp(a->vectors[i], b->vectors[i], (size_t)bytes))
			harness_bad("vector register", "number %d changed", i);
	for (int i = 0; i < 8 && bytes == 64; i++)
		CHECK("mask register", b->masks[i] & 0xffff, a->masks[i]);
	CHECK("mxcsr", b->mxcsr, a->mxcsr);
	CHECK("x87 control", b->control, a->control);
	REQUIRE("x87", !memcmp(a->x87, b->x87, 10));
}

static void worker(long index)
{
	static struct state states[WORKERS];
	struct state *state = &states[index];
	const int wide = __builtin_cpu_supports("avx512f");
	const word mask = 1ul << (SIGUSR1 - 1) | 1ul << (SIGTRAP - 1);
	word seed = (word)index + 1;
	char *area = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	stack_t stack = { .ss_sp = area, .ss_size = 32768 + 4096 * (size_t)index };
	REQUIRE("mmap", area != MAP_FAILED && sigaltstack(&stack, NULL) == 0);
	REQUIRE("mask", syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, 8) == 0);
	__atomic_store_n(&tids[index], (int)syscall(SYS_gettid), __ATOMIC_RELEASE);
	while (harness_running()) {
		fill(state, &seed);
		COUNT(hold, 1);
		word red_zone = (wide ? steady_hold_zmm : steady_hold_ymm)(state, ROUNDS);
		CHECK("red zone", red_zone, 120);
		compare(state, wide ? 32 : 16, wide ? 64 : 32);
		stack_t now;
		word mask_now;
		REQUIRE("sigaltstack", sigaltstack(NULL, &now) == 0);
		CHECK("alternate stack", (word)now.ss_sp, (word)area);
		CHECK("its size", now.ss_size, stack.ss_size);
		CHECK("its flags", now.ss_flags, 0);
		REQUIRE("mask", syscall(SYS_rt_sigprocmask, SIG_SETMASK, NULL, &mask_now, 8) == 0);
		CHECK("signal mask", mask_now, mask);
		harness_iterated();
	}
}

static void show_tids(long argument)
{
	(void)argument;
	harness_reply("tids %d %d", tids[0], tids[1]);
}

static void burst(long n)
{
	harness_reply("burst done %ld", n);
}

int main(void)
{
	static const harness_command commands[] = { { "burst", burst }, { "tids", show_tids }, { NULL, NULL } };
	REQUIRE("AVX", __builtin_cpu_supports("avx"));
	harness_spawn(WORKERS, worker);
	while (!__atomic_load_n(&tids[0], __ATOMIC_ACQUIRE) || !__atomic_load_n(&tids[1], __ATOMIC_ACQUIRE))
		harness_milliseconds(1);
	return harness_main(commands, NULL);
}

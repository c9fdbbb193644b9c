/* SPDX-License-Identifier: Apache-2.0
 *
 * Calls the functions of movable_asm.S, interrupts them everywhere, and stays in the
 * handlers.
 *
 *   fault N  -> parked PC     a thread runs into the third instruction of movable_fault,
 *                             and waits in its handler. N = 0: on its own stack; 1: on an
 *                             alternate one; 2: on its own, and then in another handler on
 *                             the alternate one
 *   release  -> returned N    it goes on; N must be 42
 *   who      -> who TID       the thread that is in movable_long nearly all the time
 */
#include "harness.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <ucontext.h>

typedef unsigned long word;

word movable_nops(word x), movable_flags(word x), movable_fault(const int *place);
COUNTER(movable_nops);
COUNTER(movable_flags);
COUNTER(movable_fault);
COUNTER(movable_long);
COUNTER(on_profile);
COUNTER(on_late);

enum { LONG_BYTES = 32 << 20 };
static const char *long_bytes;
static const int place = 35;
static int long_tid;

/* --- the functions, and that they keep what they must --- */
#define CALL_CHECKED(name, x) \
	({ \
		word result, kept = (x) ^ 0x5555, rcx = (x) + 1; \
		COUNT(name, 1); \
		__asm__ volatile("mov %[kept], %%rbx\n\tcall " #name "\n\tmov %%rbx, %[kept]" \
				 : "=a"(result), [kept] "+r"(kept), "+c"(rcx) \
				 : "D"(x), "0"(0ul) \
				 : "rbx", "rdx", "memory", "cc"); \
		CHECK(#name " rbx", kept, (word)(x) ^ 0x5555); \
		CHECK(#name " rcx", rcx, (word)(x) + 1); \
		result; \
	})

static void worker(long index)
{
	for (word x = (word)index << 20; harness_running(); x++) {
		for (word y = x; y < x + 64; y++) {
			CHECK("movable_nops", CALL_CHECKED(movable_nops, y), 3 * y + 5);
			CHECK("movable_flags", CALL_CHECKED(movable_flags, y), 2 * y + 1);
		}
		CHECK("movable_fault", CALL_CHECKED(movable_fault, (word)&place) & 0xffffffff, 42);
		harness_iterated();
	}
}

static void long_worker(long index)
{
	(void)index;
	__atomic_store_n(&long_tid, (int)syscall(SYS_gettid), __ATOMIC_RELEASE);
	while (harness_running()) {
		word end, source = (word)long_bytes, count = LONG_BYTES;
		COUNT(movable_long, 1);
		__asm__ volatile("call movable_long"
				 : "=a"(end), "+S"(source), "+c"(count) : : "memory", "cc");
		CHECK("movable_long", end, (word)long_bytes + LONG_BYTES);
		CHECK("movable_long rcx", count, LONG_BYTES);
		harness_iterated();
	}
}

/* --- handlers: of a timer, now and then slow to return --- */
static void on_profile(int number)
{
	int error = errno;
	CHECK("signal", number, SIGPROF);
	if (COUNT(on_profile, 1), calls_on_profile.value % 8 == 0) {
		struct timespec rest = { 0, 3000000 };
		COUNT(on_late, 1);
		nanosleep(&rest, NULL);
	}
	CHECK("movable_nops", CALL_CHECKED(movable_nops, 9ul), 32);
	errno = error;
}

/* --- a fault that waits --- */
static int fault_kind = -1, parked, released, answered;
static word parked_pc, returned;

static void park(void)
{
	__atomic_store_n(&parked, 1, __ATOMIC_RELEASE);
	while (!__atomic_load_n(&released, __ATOMIC_ACQUIRE))
		harness_milliseconds(1);
}

static void on_fault(int number, siginfo_t *info, void *context)
{
	ucontext_t *at = context;
	CHECK("signal", number, SIGSEGV);
	CHECK("fault at", (word)info->si_addr, 16);
	parked_pc = (word)at->uc_mcontext.gregs[REG_RIP];
	if (fault_kind == 2)
		syscall(SYS_tgkill, getpid(), (int)syscall(SYS_gettid), SIGUSR2);
	else
		park();
	at->uc_mcontext.gregs[REG_RDI] = (long)&place;
}

static void on_user(int number)
{
	CHECK("signal", number, SIGUSR2);
	park();
}

static void *faulter(void *argument)
{
	/* A mapping of its own: beside parked_pc it would look as if it held a way back. */
	enum { SIZE = 65536 };
	char *stack = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	stack_t alternate = { .ss_sp = stack, .ss_size = SIZE };
	(void)argument;
	REQUIRE("mmap", stack != MAP_FAILED);
	REQUIRE("sigaltstack", sigaltstack(&alternate, NULL) == 0);
	for (;;) {
		while (__atomic_load_n(&fault_kind, __ATOMIC_ACQUIRE) < 0)
			harness_milliseconds(1);
		returned = CALL_CHECKED(movable_fault, 16ul) & 0xffffffff;
		__atomic_store_n(&fault_kind, -1, __ATOMIC_RELEASE);
		__atomic_store_n(&answered, 1, __ATOMIC_RELEASE);
	}
	return NULL;
}

static void fault(long kind)
{
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };
	action.sa_flags |= kind == 1 ? SA_ONSTACK : 0;
	sigaction(SIGSEGV, &action, NULL);
	parked = released = answered = 0;
	__atomic_store_n(&fault_kind, (int)kind, __ATOMIC_RELEASE);
	while (!__atomic_load_n(&parked, __ATOMIC_ACQUIRE))
		harness_milliseconds(1);
	harness_reply("parked %#lx", parked_pc);
}

static void release(long argument)
{
	(void)argument;
	__atomic_store_n(&released, 1, __ATOMIC_RELEASE);
	while (!__atomic_load_n(&answered, __ATOMIC_ACQUIRE))
		harness_milliseconds(1);
	harness_reply("returned %lu", returned);
}

static void who(long argument)
{
	(void)argument;
	harness_reply("who %d", __atomic_load_n(&long_tid, __ATOMIC_ACQUIRE));
}

static void set_timer(int paused)
{
	long period = paused ? 0 : 700; /* microseconds of processor time */
	struct itimerval timer = { { 0, period }, { 0, period } };
	REQUIRE("setitimer", setitimer(ITIMER_PROF, &timer, NULL) == 0);
}

static void burst(long n)
{
	for (word i = 0; i < (word)n; i++)
		CHECK("movable_nops", CALL_CHECKED(movable_nops, i), 3 * i + 5);
	harness_reply("burst done %ld", n);
}

int main(void)
{
	static const harness_command commands[] = { { "burst", burst }, { "fault", fault },
						    { "release", release }, { "who", who },
						    { NULL, NULL } };
	struct sigaction profile = { .sa_handler = on_profile, .sa_flags = SA_RESTART };
	struct sigaction user = { .sa_handler = on_user, .sa_flags = SA_ONSTACK };
	pthread_t thread;
	long_bytes = mmap(NULL, LONG_BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	REQUIRE("mmap", long_bytes != MAP_FAILED);
	sigaction(SIGPROF, &profile, NULL);
	sigaction(SIGUSR2, &user, NULL);
	REQUIRE("create", pthread_create(&thread, NULL, faulter, NULL) == 0);
	harness_spawn(2, worker);
	harness_spawn(1, long_worker);
	harness_on_pause = set_timer;
	set_timer(0);
	return harness_main(commands, NULL);
}

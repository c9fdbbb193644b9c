/* relocation_native.c - runs cases on the real processor (see relocation_case.h).
 *
 * Standard input: a world, its text and its states, then {u32 count, cases};
 * standard output: {i32 status of the child, u32 how many it finished, results}.
 *
 * A run begins with the return from a signal handler, which loads every
 * register there is, and ends with the next signal, which saves them: int3
 * stands wherever a window can be left. Each batch has a child of its own (or
 * two, if its cases are isolated); what kills a child is the harness's fault, and
 * told.
 */
#include "relocation_case.h"

#include <asm/prctl.h>
#include <cpuid.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>

enum { MOST = 1 << 16, ALTERNATE_STACK = 1 << 16, LEGACY = 512, TICK_MICROSECONDS = 5000,
       ISOLATED_MICROSECONDS = 999999 };
/* x87, SSE, AVX, mask registers, upper halves, upper registers */
enum { COMPONENTS = 0xe7 };

static struct case_ cases[MOST];
static struct {
	uint32_t finished;
	struct result results[MOST];
} *shared;
static uint32_t case_count;

static int32_t current, phase, seen_current, seen_phase;
static int first_phase, last_phase;
static uint64_t main_fs, main_gs;
static mcontext_t main_context;
static uint8_t main_vectors[VECTORS];
static struct {
	uint32_t offset, size;
} components[64];

/* The C library finds errno through fs, which is the case's own here. */
static long system_call(long number, long first, long second)
{
	long result;

	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(first), "S"(second)
			 : "rcx", "r11", "memory");
	return result;
}

static void set_bases(uint64_t fs, uint64_t gs)
{
	__asm__ volatile("mov %0, %%ds; mov %0, %%es" : : "r"(0));
	system_call(SYS_arch_prctl, ARCH_SET_FS, (long)fs);
	system_call(SYS_arch_prctl, ARCH_SET_GS, (long)gs);
}

static void get_bases(uint64_t bases[2])
{
	system_call(SYS_arch_prctl, ARCH_GET_FS, (long)&bases[0]);
	system_call(SYS_arch_prctl, ARCH_GET_GS, (long)&bases[1]);
}

static void find_components(void)
{
	unsigned a, b, c, d;

	if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
		return;
	for (unsigned i = 2; i < 16; i++) {
		__cpuid_count(13, i, a, b, c, d);
		components[i].size = a;
		components[i].offset = b;
	}
}

static const int gpr_places[16] = { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI,
				    REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13,
				    REG_R14, REG_R15 };

/* Bits of the components that the frame has (Linux: struct _fpx_sw_bytes). */
static uint64_t frame_components(const uint8_t *frame)
{
	uint64_t features;

	memcpy(&features, frame + 464 + 8, 8);
	return features & COMPONENTS;
}

static void noise(uint8_t *to, size_t size, uint64_t *seed)
{
	for (size_t i = 0; i + 8 <= size; i += 8) {
		uint64_t word = next_random(seed);

		memcpy(to + i, &word, 8);
	}
}

static void load_vectors(uint8_t *frame, uint64_t seed)
{
	uint64_t present = frame_components(frame);
	uint16_t *fcw = (uint16_t *)frame, *fsw = fcw + 1;
	uint32_t *mxcsr = (uint32_t *)(frame + 24);

	memset(frame, 0, 24);
	*fcw = 0x37f;
	*fsw = 0;
	frame[4] = next_random(&seed) & 1 ? 0xff : 0; /* all x87 registers in use, or none */
	*mxcsr = 0x1f80;
	for (int i = 0; i < 8; i++) {
		noise(frame + 32 + 16 * i, 8, &seed);
		frame[32 + 16 * i + 7] |= 0x80; /* a normal number near 1 */
		memcpy(frame + 32 + 16 * i + 8, "\xff\x3f\0\0\0\0\0\0", 8);
	}
	noise(frame + 160, 256, &seed);
	for (int i = 2; i < 16; i++)
		if (present >> i & 1)
			noise(frame + components[i].offset, components[i].size, &seed);
	memcpy(frame + LEGACY, &present, 8);
}

static void add(struct outcome *outcome, const uint8_t *from, size_t size, int is_used)
{
	uint8_t *to = outcome->vectors + outcome->vector_bytes;

	if (is_used)
		memcpy(to, from, size);
	else
		memset(to, 0, size);
	outcome->vector_bytes += (uint32_t)size;
}

static void keep_vectors(struct outcome *outcome, const uint8_t *frame)
{
	uint64_t present = frame_components(frame), used = ~0ull;

	outcome->vector_bytes = 0;
	if (present)
		memcpy(&used, frame + LEGACY, 8);
	/* Not the address of the last x87 instruction: it is another one. */
	add(outcome, frame, 8, used & 1);
	add(outcome, frame + 16, 8, used & 1);
	add(outcome, frame + 32, 128, used & 1);
	add(outcome, frame + 24, 4, 1);
	add(outcome, frame + 160, 256, used >> 1 & 1);
	for (int i = 2; i < 16; i++)
		if (present >> i & 1)
			add(outcome, frame + components[i].offset, components[i].size,
			    used >> i & 1);
}

static void start(ucontext_t *context)
{
	const struct case_ *one = &cases[current];
	const struct state *state = &the_states[one->state];
	greg_t *gregs = context->uc_mcontext.gregs;

	lay_out(one, phase == first_phase);
	for (int i = 0; i < 16; i++)
		gregs[gpr_places[i]] = (greg_t)state->gpr[i];
	gregs[REG_EFL] = (greg_t)(state->flags | 0x202);
	gregs[REG_RIP] = (greg_t)(phase ? one->moved_to : one->address);
	gregs[REG_CSGSFS] = main_context.gregs[REG_CSGSFS];
	load_vectors((uint8_t *)context->uc_mcontext.fpregs, state->seed);
	set_bases(state->fs, state->gs);
}

static void keep(const ucontext_t *context, int signal, const siginfo_t *info)
{
	struct outcome *outcome = &outcomes[phase];
	const greg_t *gregs = context->uc_mcontext.gregs;

	get_bases(outcome->bases);
	outcome->kind = signal == SIGTRAP && gregs[REG_TRAPNO] == 1 ? KIND_STEPPED
			: signal == SIGTRAP ? KIND_TRAP
			: signal == SIGILL ? KIND_ILLEGAL
			: signal == SIGPROF ? KIND_ENDLESS
					    : KIND_FAULT + (uint32_t)signal;
	outcome->detail = (uint32_t)gregs[REG_TRAPNO] << 16 | (gregs[REG_ERR] & 0xffff);
	outcome->pc = (uint64_t)gregs[REG_RIP] - (signal == SIGTRAP);
	outcome->fault = 0;
	if (signal == SIGSEGV || signal == SIGBUS)
		outcome->fault = (uint64_t)info->si_addr; /* of others it is their own address */
	for (int i = 0; i < 16; i++)
		outcome->gpr[i] = (uint64_t)gregs[gpr_places[i]];
	outcome->flags = (uint64_t)gregs[REG_EFL];
	keep_vectors(outcome, (const uint8_t *)context->uc_mcontext.fpregs);
	keep_memory(&cases[current], outcome);
}

static void on_signal(int signal, siginfo_t *info, void *argument)
{
	ucontext_t *context = argument;
	size_t vector_bytes = LEGACY + 64;

	/* With AC set, which popf does, the handler's own code would fault. */
	__asm__ volatile("pushfq; andq $~0x40000, (%%rsp); popfq" ::: "cc", "memory");
	if (signal == SIGPROF && (current != seen_current || phase != seen_phase)) {
		seen_current = current;
		seen_phase = phase;
		return;
	}
	for (int i = 2; i < 16; i++)
		if (components[i].size && vector_bytes < components[i].offset + components[i].size)
			vector_bytes = components[i].offset + components[i].size;
	if (current < 0) {
		if (signal != SIGTRAP)
			return;
		main_context = context->uc_mcontext;
		memcpy(main_vectors, context->uc_mcontext.fpregs, vector_bytes);
		current = 0;
		phase = first_phase;
		start(context);
		return;
	}
	keep(context, signal, info);
	if (phase != last_phase) {
		phase++;
		start(context);
		return;
	}
	clear_up();
	if (phase == 1 && first_phase == 0)
		judge(&cases[current], &outcomes[0], &outcomes[1], &shared->results[current]);
	shared->finished = (uint32_t)++current;
	phase = first_phase;
	if ((uint32_t)current < case_count) {
		start(context);
		return;
	}
	set_bases(main_fs, main_gs);
	memcpy(context->uc_mcontext.gregs, main_context.gregs, sizeof main_context.gregs);
	memcpy(context->uc_mcontext.fpregs, main_vectors, vector_bytes);
	current = -1;
}

/* Nothing that went astray talks to the kernel: the harness would be told by SIGSYS. */
static void forbid_system_calls(void)
{
	static const int allowed[] = { SYS_arch_prctl, SYS_rt_sigreturn, SYS_setitimer,
				       SYS_exit_group };
	enum { COUNT = sizeof allowed / sizeof *allowed };
	struct sock_filter code[COUNT + 3] = { BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
							offsetof(struct seccomp_data, nr)) };
	struct sock_fprog program = { COUNT + 3, code };

	for (unsigned i = 0; i < COUNT; i++)
		code[i + 1] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K,
							   (unsigned)allowed[i], COUNT - i, 0);
	code[COUNT + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	code[COUNT + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	must(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
	must(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), "seccomp");
}

static void run_batch(void)
{
	static const int signals[] = { SIGTRAP, SIGSEGV, SIGILL, SIGFPE, SIGBUS, SIGPROF };
	static uint8_t stack[ALTERNATE_STACK];
	long period = cases[0].flags & ISOLATED ? ISOLATED_MICROSECONDS : TICK_MICROSECONDS;
	struct itimerval tick = { { 0, period }, { 0, period } }, none = { 0 };
	struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	stack_t alternate = { .ss_sp = stack, .ss_size = sizeof stack };
	uint64_t bases[2];
	cpu_set_t one_cpu;

	/* What cpuid and rdpid say depends on the processor. */
	CPU_ZERO(&one_cpu);
	CPU_SET(sched_getcpu(), &one_cpu);
	must(!sched_setaffinity(0, sizeof one_cpu, &one_cpu), "sched_setaffinity");
	sigfillset(&action.sa_mask);
	must(!sigaltstack(&alternate, 0), "sigaltstack");
	for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
		must(!sigaction(signals[i], &action, 0), "sigaction");
	get_bases(bases);
	main_fs = bases[0];
	main_gs = bases[1];
	current = seen_current = -1;
	forbid_system_calls();
	must(!setitimer(ITIMER_PROF, &tick, 0), "setitimer");
	__asm__ volatile("int3" ::: "memory");
	setitimer(ITIMER_PROF, &none, 0);
}

/* Both runs of all cases, or one of them, in a child; its status. */
static int run_in_child(int first, int last)
{
	int status;
	pid_t child;

	shared->finished = 0;
	first_phase = first;
	last_phase = last;
	child = fork();
	must(child >= 0, "fork");
	if (!child) {
		run_batch();
		_exit(0);
	}
	must(waitpid(child, &status, 0) == child, "waitpid");
	return status;
}

int main(void)
{
	size_t shared_bytes = sizeof *shared;

	make_world();
	find_components();
	shared = map_at(0, shared_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
	for (;;) {
		int status;

		read_all(&case_count, sizeof case_count);
		must(case_count && case_count <= MOST, "count");
		read_all(cases, case_count * sizeof *cases);
		if (cases[0].flags & ISOLATED) {
			must(case_count == 1, "one isolated case at a time");
			status = run_in_child(0, 0);
			if (!status && shared->finished)
				status = run_in_child(1, 1);
			judge(&cases[0], &outcomes[0], &outcomes[1], &shared->results[0]);
		} else {
			status = run_in_child(0, 1);
		}
		write_all(&status, sizeof status);
		write_all(&shared->finished, sizeof shared->finished);
		write_all(shared->results, shared->finished * sizeof *shared->results);
	}
}

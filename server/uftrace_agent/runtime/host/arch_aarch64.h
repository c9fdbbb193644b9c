/* arch_aarch64.h - registers, calls and signal frames of AArch64; see arch_host.h. */
#ifndef UH_ARCH_AARCH64_H
#define UH_ARCH_AARCH64_H

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#ifndef NT_ARM_TLS
#define NT_ARM_TLS 0x401
#endif
#ifndef NT_ARM_SYSTEM_CALL
#define NT_ARM_SYSTEM_CALL 0x404
#endif

/* There is no `trap` writer: traps are words as well, and no word that is executed may
 * become one (ARM ARM, B2.2.5). */
#define UH_TRAP_BYTE 0
/* Instructions are written whole. */
#define UH_CODE_UNIT 4
#define UH_THUNK_RETURN UF_A64_THUNK_RETURN
/* x0 to x30: the link register among them. */
#define UH_GENERAL_REGISTERS 31
/* struct rt_sigframe is siginfo (128), 176 bytes of struct ucontext, the fault address,
 * x0 to x30, sp, pc, pstate, and from 592 on records, the first of which is that of the
 * vector registers (arch/arm64/kernel/signal.c, setup_sigframe_layout). A handler's
 * return address lies at no known distance, so a frame is known by that record's head:
 * FPSIMD_MAGIC and its size. */
#define UH_FRAME_MARK 0x0000021046508001ull
#define UH_MARK_TO_SP (-32)
#define UH_MARK_TO_PC (-24)
/* Above these lie signatures. The kernel maps nothing of a program higher unless it is asked
 * to (Documentation/arch/arm64/memory.rst, "52-bit userspace VAs"), and thunks never. */
#define UH_ADDRESS_BITS 48

struct uh_registers {
	struct user_regs_struct user;
};

static inline uint64_t uh_ticks(void)
{
	uint64_t ticks;

	__asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks));
	return ticks;
}

static inline uint64_t uh_pc(const struct uh_registers *r) { return r->user.pc; }
static inline void uh_set_pc(struct uh_registers *r, uint64_t pc) { r->user.pc = pc; }
static inline uint64_t uh_sp(const struct uh_registers *r) { return r->user.sp; }
/* PSTATE.nRW: a 32-bit program. */
static inline int uh_is_native(const struct uh_registers *r) { return !(r->user.pstate & 0x10); }

static inline uint64_t uh_thread_pointer(pid_t tid, const struct uh_registers *r)
{
	uint64_t words[2] = { 0, 0 }; /* the second one is of SME, where there is that */
	struct iovec io = { words, sizeof words };

	(void)r;
	return ptrace(PTRACE_GETREGSET, tid, NT_ARM_TLS, &io) ? 0 : words[0];
}

static inline int uh_may_be_mark(const uint64_t *words, uint64_t count)
{
	(void)count;
	return words[0] == UH_FRAME_MARK;
}

static inline int uh_is_mark(int mem_fd, uint64_t word)
{
	(void)mem_fd;
	return word == UH_FRAME_MARK;
}

/* What a word of a stack means as a return address: `paciasp` signs those of functions
 * in the bits that no address has. */
static inline uint64_t uh_unsigned(uint64_t word)
{
	return word & ((1ull << UH_ADDRESS_BITS) - 1);
}

/* What has to be known of a thread before it is stopped: the first argument of its call.
 * The kernel overwrites x0 by the call's result, and keeps what it was to itself; until
 * the stop /proc/PID/task/TID/syscall tells it. */
struct uh_call_note {
	int64_t number; /* negative: in no call */
	uint64_t args[6];
	uint64_t sp;
	uint64_t pc;
	uint64_t switches;
};

/* How often the thread has gone to sleep; ~0: unknown. */
static inline uint64_t uh_sleeps(pid_t pid, pid_t tid)
{
	char path[64], text[4096];
	const char *line;
	ssize_t size;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/task/%d/status", pid, tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return ~0ull;
	size = read(fd, text, sizeof text - 1);
	close(fd);
	text[size > 0 ? size : 0] = 0;
	line = strstr(text, "\nvoluntary_ctxt_switches:");
	return line ? strtoull(line + 25, 0, 10) : ~0ull;
}

/* Calls that the kernel goes on with by restart_syscall, from what it has noted of them:
 * those with a relative time, and futexes with any. */
static inline int uh_has_restart_block(const struct uh_call_note *note)
{
	switch (note->number) {
	case SYS_nanosleep:
	case SYS_restart_syscall:
		return 1;
	case SYS_clock_nanosleep:
		return !(note->args[1] & 1); /* TIMER_ABSTIME */
	case SYS_futex: /* FUTEX_WAIT and FUTEX_WAIT_BITSET, with a timeout */
		return note->args[3] && ((note->args[1] & 0x7f) == 0 || (note->args[1] & 0x7f) == 9);
	default:
		return 0;
	}
}

/* What /proc says of the call that the thread sleeps in; 0: it is in none. */
static inline int uh_read_call(pid_t pid, pid_t tid, struct uh_call_note *note)
{
	char path[64], text[512], *at = text;
	ssize_t size;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/task/%d/syscall", pid, tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	size = read(fd, text, sizeof text - 1);
	close(fd);
	text[size > 0 ? size : 0] = 0;
	if (*at < '0' || *at > '9')
		return 0;
	note->number = strtoll(at, &at, 10);
	for (int i = 0; i < 6; i++)
		note->args[i] = strtoull(at, &at, 16);
	note->sp = strtoull(at, &at, 16);
	note->pc = strtoull(at, &at, 16);
	return uh_ends_by_stop(note->number) || uh_has_restart_block(note);
}

static inline void uh_note_call(pid_t pid, pid_t tid, struct uh_call_note *note)
{
	if (uh_read_call(pid, tid, note)) {
		/* Once more: a call that begins behind this count adds to it. */
		note->switches = uh_sleeps(pid, tid);
		if (uh_read_call(pid, tid, note))
			return;
	}
	note->number = -1;
}

static inline void uh_note_no_call(struct uh_call_note *note) { note->number = -1; }

/* Whether the stop has interrupted the very call that was noted: all is as it was, and
 * between the two the thread has slept just once, which is the stop itself. */
static inline int uh_is_noted_call(pid_t pid, pid_t tid, const struct uh_registers *r,
				   const struct uh_call_note *note, uint64_t pc)
{
	if (note->number < 0 || (uint64_t)note->number != r->user.regs[8] || note->pc != pc ||
	    note->sp != r->user.sp)
		return 0;
	for (int i = 1; i < 6; i++)
		if (note->args[i] != r->user.regs[i])
			return 0;
	return note->switches != ~0ull && uh_sleeps(pid, tid) == note->switches + 1;
}

static inline int uh_call_was_interrupted(pid_t pid, pid_t tid, const struct uh_registers *r,
					  const struct uh_call_note *note)
{
	return (int64_t)r->user.regs[0] == -EINTR && note->number >= 0 &&
	       uh_ends_by_stop(note->number) && uh_is_noted_call(pid, tid, r, note, r->user.pc);
}

static inline void uh_reenter_call(struct uh_registers *r, const struct uh_call_note *note)
{
	r->user.regs[0] = note->args[0];
	r->user.pc -= 4;
}

/* Whether the kernel will go on with the interrupted call by restart_syscall: before a
 * tracer sees the thread it has set back x0 and the program counter, and it sets x8 when
 * the tracer is done (arch/arm64/kernel/signal.c, do_signal). */
static inline int uh_will_restart(pid_t pid, pid_t tid, const struct uh_registers *r,
				  const struct uh_call_note *note)
{
	return note->number >= 0 && uh_has_restart_block(note) && r->user.regs[0] == note->args[0] &&
	       uh_is_noted_call(pid, tid, r, note, r->user.pc + 4);
}

/* *data: what seccomp filters will be shown. The note tells enough: whether it is the very
 * call does not matter to them. */
static inline int uh_restart_data(const struct uh_registers *r, const struct uh_call_note *note,
				  struct seccomp_data *data)
{
	const uint64_t *x = (const uint64_t *)r->user.regs;

	if (note->number < 0 || !uh_has_restart_block(note) || r->user.pc + 4 != note->pc)
		return 0;
	*data = (struct seccomp_data){
		SYS_restart_syscall, AUDIT_ARCH_AARCH64, note->pc,
		{ x[0], x[1], x[2], x[3], x[4], x[5] },
	};
	return 1;
}

/* No system call is under way: the kernel is to restart none. */
static inline int uh_forget_call(pid_t tid)
{
	int32_t none = -1;
	struct iovec io = { &none, sizeof none };

	return ptrace(PTRACE_SETREGSET, tid, NT_ARM_SYSTEM_CALL, &io) ? -errno : 0;
}

static inline int uh_set_registers(pid_t tid, const struct uh_registers *registers);

/* Make the thread enter the call anew that it would go on with by restart_syscall. The
 * kernel will have put that number into x8: at its entry, before the filters are asked,
 * it becomes the call's own. */
static inline void uh_enter_anew(pid_t tid, struct uh_registers *r, const struct uh_call_note *note)
{
	int32_t number = (int32_t)note->number;
	struct iovec io = { &number, sizeof number };
	int signal, in_call;

	if (ptrace(PTRACE_SYSCALL, tid, 0, 0) ||
	    uh_await_any(tid, uh_now() + 1000000000ull, &signal, &in_call) || !in_call)
		return;
	ptrace(PTRACE_SETREGSET, tid, NT_ARM_SYSTEM_CALL, &io);
	r->user.regs[8] = note->number;
	uh_set_registers(tid, r);
}

#endif

/* arch_host.h - registers, per machine, behind one set of functions. */
#ifndef UH_ARCH_HOST_H
#define UH_ARCH_HOST_H

#include <elf.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/seccomp.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/user.h>

#if defined(__x86_64__)
#define UH_TRAP_BYTE 0xcc /* int3 */
/* struct rt_sigframe: the return address, 40 bytes of struct ucontext, 16 registers. */
#define UH_SAVED_PC_OFFSET 176
#define UH_SAVED_SP_OFFSET 168
#define UH_RESTORER_BYTES 9
/* struct user_regs_struct begins with r15 to rdi; behind them come orig_rax, rip and others. */
#define UH_GENERAL_REGISTERS 15

struct uh_registers {
	struct user_regs_struct user;
};

static inline uint64_t uh_ticks(void)
{
	uint32_t low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return low | (uint64_t)high << 32;
}

static inline uint64_t uh_pc(const struct uh_registers *r) { return r->user.rip; }
static inline void uh_set_pc(struct uh_registers *r, uint64_t pc) { r->user.rip = pc; }
static inline uint64_t uh_sp(const struct uh_registers *r) { return r->user.rsp; }
static inline uint64_t uh_thread_pointer(const struct uh_registers *r) { return r->user.fs_base; }
static inline int uh_is_native(const struct uh_registers *r) { return r->user.cs == 0x33; }

/* Whether a signal frame (arch/x86/kernel/signal_64.c) may begin with the first of
 * so many words of a stack: there is the return address, uc_flags, of which the kernel
 * knows three, and uc_link, which it writes as 0. */
static inline int uh_may_be_frame(const uint64_t *words, uint64_t count)
{
	return count < 3 || (words[1] <= 7 && !words[2]);
}

/* What glibc's and musl's return from a signal handler begins with: who jumps to such
 * code leaves a signal frame behind, struct ucontext first (H67). */
static inline int uh_is_restorer(const uint8_t code[UH_RESTORER_BYTES])
{
	static const uint8_t codes[2][9] = { { 0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05 },
					     { 0xb8, 15, 0, 0, 0, 0x0f, 0x05 } };

	return !memcmp(code, codes[0], 9) || !memcmp(code, codes[1], 7);
}

/* Calls that the kernel does not restart after a stop, and that lose nothing
 * by being entered again (signal(7), "Interruption of system calls"). */
static inline int uh_call_was_interrupted(const struct uh_registers *r)
{
	if ((long)r->user.rax != -EINTR)
		return 0;
	switch (r->user.orig_rax) {
	case SYS_epoll_wait:
	case SYS_epoll_pwait:
	case SYS_epoll_pwait2:
	case SYS_semop:
	case SYS_semtimedop:
	case SYS_rt_sigtimedwait:
	case SYS_io_getevents:
	case SYS_io_pgetevents:
	case SYS_msgrcv:
	case SYS_msgsnd:
	case SYS_accept:
	case SYS_accept4:
	case SYS_recvfrom:
	case SYS_recvmsg:
	case SYS_recvmmsg:
	case SYS_sendto:
	case SYS_sendmsg:
	case SYS_read:
	case SYS_readv:
	case SYS_write:
	case SYS_writev:
	case SYS_io_uring_enter:
		return 1;
	default:
		return 0;
	}
}

static inline void uh_reenter_call(struct uh_registers *r)
{
	r->user.rax = r->user.orig_rax;
	r->user.rip -= 2; /* 0f 05 */
	r->user.orig_rax = -1;
}

/* Whether the kernel is about to go on with an interrupted call by restart_syscall:
 * rax is ERESTART_RESTARTBLOCK then. *data: what seccomp filters will be shown. */
static inline int uh_restart_data(const struct uh_registers *r, struct seccomp_data *data)
{
	if ((long)r->user.orig_rax < 0 || (long)r->user.rax != -516)
		return 0;
	*data = (struct seccomp_data){
		SYS_restart_syscall,
		AUDIT_ARCH_X86_64,
		r->user.rip,
		{ r->user.rdi, r->user.rsi, r->user.rdx, r->user.r10, r->user.r8, r->user.r9 },
	};
	return 1;
}
#elif defined(__aarch64__)
#define UH_TRAP_BYTE 0 /* none: words are written whole */
/* struct rt_sigframe: siginfo (128), 176 bytes of struct ucontext, fault address,
 * x0 to x30, sp. */
#define UH_SAVED_PC_OFFSET 568
#define UH_SAVED_SP_OFFSET 560
#define UH_RESTORER_BYTES 8
/* x0 to x30: the link register among them. */
#define UH_GENERAL_REGISTERS 31

struct uh_registers {
	struct user_regs_struct user;
	int32_t call;
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
static inline uint64_t uh_thread_pointer(const struct uh_registers *r) { (void)r; return 0; }
static inline int uh_is_native(const struct uh_registers *r) { return !(r->user.pstate & 0x10); }
static inline int uh_may_be_frame(const uint64_t *words, uint64_t count) { (void)words; (void)count; return 0; }
static inline int uh_is_restorer(const uint8_t code[UH_RESTORER_BYTES]) { (void)code; return 0; }
static inline int uh_call_was_interrupted(const struct uh_registers *r) { (void)r; return 0; }
static inline void uh_reenter_call(struct uh_registers *r) { (void)r; }
static inline int uh_restart_data(const struct uh_registers *r, struct seccomp_data *data) { (void)r; (void)data; return 0; }
#else
#error "no host runtime for this machine"
#endif

static inline int uh_get_registers(pid_t tid, struct uh_registers *registers)
{
	struct iovec io = { &registers->user, sizeof registers->user };

	return ptrace(PTRACE_GETREGSET, tid, NT_PRSTATUS, &io) ? -errno : 0;
}

/* The registers that a program computes with: UH_GENERAL_REGISTERS words. */
static inline uint64_t *uh_general_registers(struct uh_registers *registers)
{
	return (uint64_t *)&registers->user;
}

static inline int uh_set_registers(pid_t tid, const struct uh_registers *registers)
{
	struct iovec io = { (void *)&registers->user, sizeof registers->user };

	return ptrace(PTRACE_SETREGSET, tid, NT_PRSTATUS, &io) ? -errno : 0;
}

#endif

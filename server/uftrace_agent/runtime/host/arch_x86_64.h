/* arch_x86_64.h - registers, calls and signal frames of x86-64; see arch_host.h. */
#ifndef UH_ARCH_X86_64_H
#define UH_ARCH_X86_64_H

#define UH_TRAP_BYTE 0xcc /* int3 */
#define UH_CODE_UNIT 1
#define UH_THUNK_RETURN UF_THUNK_RETURN
/* struct rt_sigframe begins with the return address, by which it is known; then come 40
 * bytes of struct ucontext, and 16 registers. */
#define UH_MARK_TO_SP 168
#define UH_MARK_TO_PC 176
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
static inline int uh_is_native(const struct uh_registers *r) { return r->user.cs == 0x33; }

static inline uint64_t uh_thread_pointer(pid_t tid, const struct uh_registers *r)
{
	(void)tid;
	return r->user.fs_base;
}

/* Whether the mark of a signal frame (arch/x86/kernel/signal_64.c) may be the first of
 * so many words of a stack: there is the return address, uc_flags, of which the kernel
 * knows three, and uc_link, which it writes as 0. */
static inline int uh_may_be_mark(const uint64_t *words, uint64_t count)
{
	return count < 3 || (words[1] <= 7 && !words[2]);
}

/* Whether a word is the mark of a signal frame: the address of glibc's or musl's return
 * from a signal handler. Who jumps to such code leaves a signal frame behind, struct
 * ucontext first (H67). */
static inline int uh_is_mark(int mem_fd, uint64_t word)
{
	static const uint8_t codes[2][9] = { { 0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05 },
					     { 0xb8, 15, 0, 0, 0, 0x0f, 0x05 } };
	uint8_t code[9];

	return word >= 4096 && !uh_read_exact(mem_fd, code, sizeof code, word) &&
	       (!memcmp(code, codes[0], 9) || !memcmp(code, codes[1], 7));
}

/* What a word of a stack means as a return address: itself. */
static inline uint64_t uh_unsigned(uint64_t word) { return word; }

/* What has to be known of a thread before it is stopped: nothing, since its registers
 * tell all about the call that the stop interrupts. */
struct uh_call_note {
	char nothing;
};

static inline void uh_note_call(pid_t pid, pid_t tid, struct uh_call_note *note)
{
	(void)pid;
	(void)tid;
	(void)note;
}

static inline void uh_note_no_call(struct uh_call_note *note) { (void)note; }

static inline int uh_call_was_interrupted(pid_t pid, pid_t tid, const struct uh_registers *r,
					  const struct uh_call_note *note)
{
	(void)pid;
	(void)tid;
	(void)note;
	return (long)r->user.rax == -EINTR && uh_ends_by_stop((long)r->user.orig_rax);
}

static inline void uh_reenter_call(struct uh_registers *r, const struct uh_call_note *note)
{
	(void)note;
	r->user.rax = r->user.orig_rax;
	r->user.rip -= 2; /* 0f 05 */
	r->user.orig_rax = -1;
}

/* Whether the kernel is about to go on with an interrupted call by restart_syscall:
 * rax is ERESTART_RESTARTBLOCK then. *data: what seccomp filters will be shown. */
static inline int uh_restart_data(const struct uh_registers *r, const struct uh_call_note *note,
				  struct seccomp_data *data)
{
	(void)note;
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

static inline int uh_set_registers(pid_t tid, const struct uh_registers *registers);

/* Make the thread enter the call anew that it would go on with by restart_syscall. */
static inline void uh_enter_anew(pid_t tid, struct uh_registers *r, const struct uh_call_note *note)
{
	uh_reenter_call(r, note);
	uh_set_registers(tid, r);
}

#endif

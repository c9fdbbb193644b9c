/* remote.c - system calls by a thread of the target, self-restoring.
 *
 * The thread's whole state is put in a signal frame on its own stack before
 * anything of it is changed, and every injected `syscall; ret` returns into
 * rt_sigreturn. If this process is killed at any instruction, the thread
 * restores itself (H68, H72; measured in research as SROP). No byte of code is
 * written, no libc function is called in the thread (H74).
 */
#include "host.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../target/annex.h"
#include "arch_host.h"

#if defined(__x86_64__)

#define XSTATE_MAX 16384
/* Neither SS_ONSTACK nor SS_DISABLE nor any of SS_FLAG_BITS. */
#define NO_MODE 0x10
/* Offset of the software-reserved bytes in the legacy FXSAVE area. */
#define SW_RESERVED 464

#define MAGIC1 0x46505853u
#define MAGIC2 0x46505845u

/* struct _fpx_sw_bytes of <asm/sigcontext.h>, which cannot stand beside
 * <signal.h>. */
struct software_bytes {
	uint32_t magic1;
	uint32_t extended_size;
	uint64_t xfeatures;
	uint32_t xstate_size;
	uint32_t padding[7];
};

/* Where the injected `ret` goes: to the C library's restorer (chain[2] alone),
 * or, in programs that have none, to `pop %rax; ret` with rt_sigreturn's number
 * and then to `syscall`. Either way the kernel finds uc behind chain[2]. */
struct frame {
	uint64_t chain[3];
	struct {
		uint64_t flags, link;
		struct {
			uint64_t sp;
			int32_t flags;
			int32_t pad;
			uint64_t size;
		} stack;
		struct {
			uint64_t r8, r9, r10, r11, r12, r13, r14, r15, di, si, bp, bx, dx, ax, cx, sp,
				ip, flags;
			uint16_t cs, gs, fs, ss;
			uint64_t err, trapno, oldmask, cr2, fpstate, reserved[8];
		} mc;
		uint64_t sigmask;
	} uc;
};

struct work {
	struct uh_remote *remote;
	struct uh_registers original;
	uint64_t frame_at;
	uint64_t stack_at; /* the stack pointer of the injected calls */
	uint64_t sigmask;
	uint8_t xstate[XSTATE_MAX];
	size_t xstate_size;
};

static int build_frame(struct work *w, struct frame *frame)
{
	struct user_regs_struct r = w->original.user;
	struct uh_registers again = w->original;
	struct software_bytes *sw = (void *)(w->xstate + SW_RESERVED);
	/* A multiple of 8, with room for the magic word behind it. */
	struct iovec io = { w->xstate, sizeof w->xstate - 8 };
	const uint32_t magic2 = MAGIC2;
	uint64_t features, fp_at, low, top;
	pid_t tid = w->remote->tid;

	if (ptrace(PTRACE_GETREGSET, tid, NT_X86_XSTATE, &io))
		return -errno;
	if (ptrace(PTRACE_GETSIGMASK, tid, 8, &w->sigmask))
		return -errno;
	w->xstate_size = io.iov_len;
	/* What sigreturn is to make of an interrupted call, as the kernel would
	 * (arch/x86/kernel/signal.c, arch_do_signal_or_restart). */
	if ((long)r.orig_rax >= 0) {
		switch ((long)r.rax) {
		case -512: /* ERESTARTSYS */
		case -513: /* ERESTARTNOINTR */
		case -514: /* ERESTARTNOHAND */
			r.rax = r.orig_rax;
			r.rip -= 2;
			break;
		case -516: /* ERESTART_RESTARTBLOCK: its block is gone after sigreturn */
			uh_reenter_call(&again);
			r = again.user;
			break;
		}
	}
	/* Only if we die: it waits anew, and no EINTR shows (H69). */
	if (uh_call_was_interrupted(&w->original)) {
		uh_reenter_call(&again);
		r = again.user;
	}
	top = w->remote->frame_top ? w->remote->frame_top : r.rsp - 128; /* red zone */
	fp_at = (top - w->xstate_size - 64) & ~63ull;
	w->frame_at = ((fp_at - sizeof *frame - 64) & ~15ull) - 8;
	low = w->frame_at - 2048;
	/* It may have changed stacks since the caller looked (H75). */
	if (low < w->remote->stack_low || (!w->remote->frame_top && r.rsp >= w->remote->stack_high))
		return -ENOSPC;

	memcpy(&features, w->xstate + SW_RESERVED, 8); /* the kernel leaves XCR0 here */
	memset(sw, 0, sizeof *sw);
	sw->magic1 = MAGIC1;
	sw->extended_size = w->xstate_size + 4;
	sw->xfeatures = features;
	sw->xstate_size = w->xstate_size;
	memcpy(w->xstate + w->xstate_size, &magic2, 4);

	memset(frame, 0, sizeof *frame);
	frame->chain[0] = w->remote->pop_rax;
	frame->chain[1] = SYS_rt_sigreturn;
	frame->chain[2] = w->remote->restorer ? w->remote->restorer : w->remote->gadget;
	w->stack_at = w->frame_at + (w->remote->restorer ? 16 : 0);
	frame->uc.flags = 1 | 2 | 4; /* UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS */
	/* Until the first call has put the real one there, an alternate stack that is
	 * none: sigreturn then leaves the thread's as it is (kernel/signal.c,
	 * restore_altstack; H76). */
	frame->uc.stack.flags = NO_MODE;
	frame->uc.mc.r8 = r.r8;
	frame->uc.mc.r9 = r.r9;
	frame->uc.mc.r10 = r.r10;
	frame->uc.mc.r11 = r.r11;
	frame->uc.mc.r12 = r.r12;
	frame->uc.mc.r13 = r.r13;
	frame->uc.mc.r14 = r.r14;
	frame->uc.mc.r15 = r.r15;
	frame->uc.mc.di = r.rdi;
	frame->uc.mc.si = r.rsi;
	frame->uc.mc.bp = r.rbp;
	frame->uc.mc.bx = r.rbx;
	frame->uc.mc.dx = r.rdx;
	frame->uc.mc.ax = r.rax;
	frame->uc.mc.cx = r.rcx;
	frame->uc.mc.sp = r.rsp;
	frame->uc.mc.ip = r.rip;
	frame->uc.mc.flags = r.eflags;
	frame->uc.mc.cs = r.cs;
	frame->uc.mc.ss = r.ss;
	frame->uc.mc.fpstate = fp_at;
	frame->uc.sigmask = w->sigmask;
	if (uh_write_exact(w->remote->mem_fd, w->xstate, w->xstate_size + 4, fp_at) ||
	    uh_write_exact(w->remote->mem_fd, frame, sizeof *frame, w->frame_at))
		return -EFAULT;
	return 0;
}

/* Run to the next system-call stop. All signals are blocked meanwhile but SIGKILL and
 * SIGSTOP, which is passed on at once, or it would be lost if we died (H73): the process
 * stops, and its tracer may let this one thread run all the same (ptrace(2), "Group-stop"). */
static int next_syscall_stop(pid_t tid, uint64_t deadline)
{
	int signal = 0;

	for (;;) {
		int in_call, error;

		if (ptrace(PTRACE_SYSCALL, tid, 0, (long)signal))
			return -errno;
		do
			error = uh_await_any(tid, deadline, &signal, &in_call);
		while (error == -EAGAIN);
		if (error || in_call)
			return error;
	}
}

/* No handler may run on top of the injected calls, and leave by longjmp. The frame
 * holds the real mask, and the thread's sigreturn sets it again: so the registers that
 * lead there come first, or a thread would stay without signals if we died between. */
static int block_signals(pid_t tid)
{
	sigset_t all;

	sigfillset(&all);
	return ptrace(PTRACE_SETSIGMASK, tid, 8, &all) ? -errno : 0;
}

static int inject(struct work *w, int64_t number, const uint64_t args[6], int64_t *result)
{
	struct uh_registers now = w->original;
	uint64_t deadline = uh_now() + w->remote->deadline_nanos;
	pid_t tid = w->remote->tid;
	int error;

	now.user.rax = number;
	now.user.rdi = args[0];
	now.user.rsi = args[1];
	now.user.rdx = args[2];
	now.user.r10 = args[3];
	now.user.r8 = args[4];
	now.user.r9 = args[5];
	now.user.rip = w->remote->gadget;
	now.user.rsp = w->stack_at;
	now.user.orig_rax = -1; /* no restart of the interrupted call meanwhile */
	error = uh_set_registers(tid, &now);
	if (!error)
		error = block_signals(tid);
	if (!error)
		error = next_syscall_stop(tid, deadline); /* entry */
	if (!error)
		error = next_syscall_stop(tid, deadline); /* exit */
	if (!error)
		error = uh_get_registers(tid, &now);
	if (!error)
		*result = now.user.rax;
	return error;
}

/* Whether the frame alone brings the thread back as if nothing had been: not where
 * the kernel keeps the rest of an interrupted call to itself. */
static int returns_by_frame(const struct work *w)
{
	const struct user_regs_struct *r = &w->original.user;

	return (long)r->orig_rax < 0 || ((long)r->rax <= -512 && (long)r->rax >= -514);
}

/* Wait until no call of the table is left. 1: not yet. */
static int look_at_calls(const struct uh_remote *remote, uint64_t deadline, unsigned *spins)
{
	struct timespec pause = { 0, 20000 };
	uint64_t left;

	if (uh_read_exact(remote->mem_fd, &left, 8, remote->table))
		return -ESRCH;
	if (!left)
		return 0;
	if (uh_now() > deadline)
		return -EINPROGRESS;
	if (++*spins > 20)
		nanosleep(&pause, 0);
	return 1;
}

static int await_calls(const struct uh_remote *remote)
{
	const uint64_t deadline = uh_now() + remote->deadline_nanos;
	unsigned spins = 0;
	int error;

	do
		error = look_at_calls(remote, deadline, &spins);
	while (error == 1);
	return error;
}

/* Make a traced thread run until its calls are made, whatever stops it meanwhile:
 * a process that was stopped reports that more than once. SIGSTOP, the one signal that
 * is not blocked, is passed on (see `next_syscall_stop`). */
static int run_calls(const struct uh_remote *remote)
{
	const uint64_t deadline = uh_now() + remote->deadline_nanos;
	unsigned spins = 0;
	int error, signal;

	do {
		error = uh_await_stop(remote->tid, 0, &signal);
		if (!error)
			ptrace(PTRACE_CONT, remote->tid, 0, (long)signal);
		if (error == -ESRCH)
			return error;
		error = look_at_calls(remote, deadline, &spins);
	} while (error == 1);
	return error;
}

/* The process was stopped just now, and stays so: a tracer may let one thread run. */
static int push_on(void *argument)
{
	const struct uh_remote *remote = argument;
	int error = uh_seize(remote->tid, PTRACE_O_TRACESYSGOOD), signal;

	if (error)
		return error;
	ptrace(PTRACE_INTERRUPT, remote->tid, 0, 0);
	error = run_calls(remote);
	if (error)
		return error;
	ptrace(PTRACE_INTERRUPT, remote->tid, 0, 0);
	do
		error = uh_await_stop(remote->tid, uh_now() + remote->deadline_nanos, &signal);
	while (error == -EAGAIN);
	uh_detach(remote->tid, signal);
	return 0;
}

/* Let the thread make all calls in one go, and go on by itself: it stands still for
 * no longer than the calls take, and needs nobody to end well. */
static int call_in_one_go(struct work *w)
{
	struct uh_remote *remote = w->remote;
	static _Thread_local uint64_t table[(UF_CALLS_ENTRIES + UF_CALL_BYTES *
					     (UF_CALLS_CAPACITY + 1)) / 8];
	struct uh_registers now = w->original;
	uint64_t *call = table + UF_CALLS_ENTRIES / 8;
	size_t size;
	int error;

	memset(table, 0, UF_CALLS_ENTRIES + UF_CALL_BYTES);
	call[0] = SYS_sigaltstack; /* see `run` */
	call[2] = w->frame_at + offsetof(struct frame, uc.stack);
	for (uint32_t i = 0; i < remote->call_count; i++) {
		call += UF_CALL_BYTES / 8;
		call[0] = remote->calls[i].number;
		memcpy(call + 1, remote->calls[i].args, 48);
		call[7] = 0;
	}
	size = UF_CALLS_ENTRIES + UF_CALL_BYTES * (remote->call_count + 1);
	if (uh_write_exact(remote->mem_fd, table, size, remote->table))
		return -EFAULT;
	now.user.rbx = remote->table;
	now.user.rip = remote->routine;
	now.user.rsp = w->frame_at + offsetof(struct frame, uc);
	now.user.orig_rax = -1;
	/* How many calls there are comes last: if we die before, the thread finds none and
	 * goes home, and no table is left that nobody works on. */
	table[0] = remote->call_count + 1;
	if (uh_set_registers(remote->tid, &now) || block_signals(remote->tid) ||
	    uh_write_exact(remote->mem_fd, table, 8, remote->table))
		return -ESRCH;
	uh_detach(remote->tid, 0);
	error = await_calls(remote);
	if (error == -EINPROGRESS)
		error = push_on(remote) ? -EINPROGRESS : 0;
	if (error)
		return error;
	if (uh_read_exact(remote->mem_fd, table, size, remote->table))
		return -ESRCH;
	for (uint32_t i = 0; i < remote->call_count; i++)
		remote->calls[i].result =
			table[(UF_CALLS_ENTRIES + UF_CALL_BYTES * (i + 1) + UF_CALL_RESULT) / 8];
	remote->calls_done = remote->call_count;
	return 0;
}

static int run(void *argument)
{
	static _Thread_local struct work w;
	struct uh_remote *remote = argument;
	uint64_t begin, ignored[6] = { 0 };
	struct frame frame;
	int64_t result;
	int error, signal;

	w.remote = remote;
	uh_hurry(1);
	error = uh_seize(remote->tid, PTRACE_O_TRACESYSGOOD);
	if (error)
		return error;
	if (ptrace(PTRACE_INTERRUPT, remote->tid, 0, 0))
		return -errno;
	do
		error = uh_await_stop(remote->tid, uh_now() + remote->deadline_nanos, &signal);
	while (error == -EAGAIN);
	if (error)
		return error; /* this thread's end detaches */
	begin = uh_now();
	if (signal) {
		/* A signal of the program's own comes first. */
		uh_detach(remote->tid, signal);
		return -EAGAIN;
	}
	error = uh_get_registers(remote->tid, &w.original);
	if (!error && !uh_is_native(&w.original))
		error = -ENOEXEC;
	if (!error)
		error = build_frame(&w, &frame);
	if (error) {
		uh_repair_interrupted_call(remote->pid, remote->tid);
		uh_detach(remote->tid, 0);
		return error;
	}

	if (remote->routine && remote->call_count <= UF_CALLS_CAPACITY && returns_by_frame(&w)) {
		error = call_in_one_go(&w);
		if (error != -EINPROGRESS)
			remote->pause_nanos = uh_now() - begin;
		return error;
	}

	/* sigreturn sets the alternate stack from the frame (H76): the first call
	 * puts the real one there. */
	ignored[1] = w.frame_at + offsetof(struct frame, uc.stack);
	error = inject(&w, SYS_sigaltstack, ignored, &result);
	for (uint32_t i = 0; !error && i < remote->call_count; i++) {
		struct uh_call *call = &remote->calls[i];

		error = inject(&w, call->number, call->args, &call->result);
		if (!error)
			remote->calls_done++;
	}
	ptrace(PTRACE_SETSIGMASK, remote->tid, 8, &w.sigmask);
	if (error == -ESRCH)
		return error;
	/* Back to where it was, with orig_rax, so that the kernel restarts the call
	 * that the stop interrupted: that happens on the way out of a stop in
	 * get_signal, which one more INTERRUPT makes sure of. */
	uh_set_registers(remote->tid, &w.original);
	ptrace(PTRACE_INTERRUPT, remote->tid, 0, 0);
	if (!ptrace(PTRACE_CONT, remote->tid, 0, 0))
		do
			result = uh_await_stop(remote->tid, uh_now() + 1000000000ull, &signal);
		while (result == -EAGAIN);
	if (!signal)
		uh_repair_interrupted_call(remote->pid, remote->tid);
	uh_detach(remote->tid, signal);
	remote->pause_nanos = uh_now() - begin;
	return error;
}

#else
static int run(void *argument)
{
	(void)argument;
	return -ENOSYS;
}

static int push_on(void *argument)
{
	(void)argument;
	return -ENOSYS;
}
#endif

/* Let the thread finish the table that uh_remote_calls left it at with -EINPROGRESS.
 * 0; -EINPROGRESS: not yet; -ESRCH, -EPERM, -ETIMEDOUT as for uh_stop_write. */
UH_API int uh_finish_calls(struct uh_remote *remote)
{
	return uh_run_as_tracer(push_on, remote);
}

/* Make `remote->tid` of the target perform the calls. 0; -EAGAIN: a signal was
 * on its way, try again or take another thread; -ENOSPC: no room on its stack;
 * -ETIMEDOUT, -ESRCH, -EPERM as for uh_stop_write. */
UH_API int uh_remote_calls(struct uh_remote *remote)
{
	remote->calls_done = 0;
	remote->pause_nanos = 0;
	return uh_run_as_tracer(run, remote);
}

struct thread_look {
	int32_t pid;
	int32_t tid;
	uint64_t pc, sp, thread_pointer;
	uint64_t deadline_nanos;
};

static int look(void *argument)
{
	struct thread_look *l = argument;
	struct uh_registers registers;
	int error = uh_seize(l->tid, PTRACE_O_TRACESYSGOOD), signal;

	if (error)
		return error;
	ptrace(PTRACE_INTERRUPT, l->tid, 0, 0);
	do
		error = uh_await_stop(l->tid, uh_now() + l->deadline_nanos, &signal);
	while (error == -EAGAIN);
	if (error)
		return error;
	error = uh_get_registers(l->tid, &registers);
	l->pc = uh_pc(&registers);
	l->sp = uh_sp(&registers);
	l->thread_pointer = uh_thread_pointer(&registers);
	if (!signal)
		uh_repair_interrupted_call(l->pid, l->tid);
	uh_detach(l->tid, signal);
	return error;
}

/* The program counter, stack pointer and thread pointer of one thread. */
UH_API int uh_look(struct thread_look *l)
{
	return uh_run_as_tracer(look, l);
}

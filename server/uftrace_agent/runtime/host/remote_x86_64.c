/* remote_x86_64.c - the signal frame of a remote call on x86-64; see remote.c. */
#if defined(__x86_64__)

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include "arch_host.h"
#include "remote_frame.h"

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

int uh_build_frame(struct uh_frame *w)
{
	static _Thread_local uint8_t xstate[XSTATE_MAX];
	struct frame built, *const frame = &built;
	struct user_regs_struct r = w->original.user;
	struct uh_registers again = w->original;
	struct software_bytes *sw = (void *)(xstate + SW_RESERVED);
	/* A multiple of 8, with room for the magic word behind it. */
	struct iovec io = { xstate, sizeof xstate - 8 };
	const uint32_t magic2 = MAGIC2;
	uint64_t features, fp_at, low, top;
	size_t xstate_size;
	pid_t tid = w->remote->tid;

	if (ptrace(PTRACE_GETREGSET, tid, NT_X86_XSTATE, &io))
		return -errno;
	if (ptrace(PTRACE_GETSIGMASK, tid, 8, &w->sigmask))
		return -errno;
	xstate_size = io.iov_len;
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
			uh_reenter_call(&again, &w->note);
			r = again.user;
			break;
		}
	}
	/* Only if we die: it waits anew, and no EINTR shows (H69). */
	if (uh_call_was_interrupted(w->remote->pid, tid, &w->original, &w->note)) {
		uh_reenter_call(&again, &w->note);
		r = again.user;
	}
	top = w->remote->frame_top ? w->remote->frame_top : r.rsp - 128; /* red zone */
	fp_at = (top - xstate_size - 64) & ~63ull;
	w->frame_at = ((fp_at - sizeof *frame - 64) & ~15ull) - 8;
	low = w->frame_at - 2048;
	/* It may have changed stacks since the caller looked (H75). */
	if (low < w->remote->stack_low || (!w->remote->frame_top && r.rsp >= w->remote->stack_high))
		return -ENOSPC;

	memcpy(&features, xstate + SW_RESERVED, 8); /* the kernel leaves XCR0 here */
	memset(sw, 0, sizeof *sw);
	sw->magic1 = MAGIC1;
	sw->extended_size = xstate_size + 4;
	sw->xfeatures = features;
	sw->xstate_size = xstate_size;
	memcpy(xstate + xstate_size, &magic2, 4);

	memset(frame, 0, sizeof *frame);
	frame->chain[0] = w->remote->pop_rax;
	frame->chain[1] = SYS_rt_sigreturn;
	frame->chain[2] = w->remote->restorer ? w->remote->restorer : w->remote->gadget;
	w->altstack_at = w->frame_at + offsetof(struct frame, uc.stack);
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
	if (uh_write_exact(w->remote->mem_fd, xstate, xstate_size + 4, fp_at) ||
	    uh_write_exact(w->remote->mem_fd, frame, sizeof *frame, w->frame_at))
		return -EFAULT;
	return 0;
}

void uh_frame_call(const struct uh_frame *w, struct uh_registers *now, int64_t number,
		   const uint64_t args[6])
{
	now->user.rax = number;
	now->user.rdi = args[0];
	now->user.rsi = args[1];
	now->user.rdx = args[2];
	now->user.r10 = args[3];
	now->user.r8 = args[4];
	now->user.r9 = args[5];
	now->user.rip = w->remote->gadget;
	now->user.rsp = w->stack_at;
	now->user.orig_rax = -1; /* no restart of the interrupted call meanwhile */
}

int64_t uh_call_result(const struct uh_registers *now) { return now->user.rax; }

void uh_frame_routine(const struct uh_frame *w, struct uh_registers *now)
{
	now->user.rbx = w->remote->table;
	now->user.rip = w->remote->routine;
	now->user.rsp = w->frame_at + offsetof(struct frame, uc);
	now->user.orig_rax = -1;
}

int uh_returns_by_frame(const struct uh_frame *w)
{
	const struct user_regs_struct *r = &w->original.user;

	return (long)r->orig_rax < 0 || ((long)r->rax <= -512 && (long)r->rax >= -514);
}

void uh_leave_frame(struct uh_frame *w, int *signal)
{
	const struct uh_remote *remote = w->remote;
	int error;

	/* Back to where it was, with orig_rax, so that the kernel restarts the call
	 * that the stop interrupted: that happens on the way out of a stop in
	 * get_signal, which one more INTERRUPT makes sure of. */
	uh_set_registers(remote->tid, &w->original);
	ptrace(PTRACE_INTERRUPT, remote->tid, 0, 0);
	if (!ptrace(PTRACE_CONT, remote->tid, 0, 0))
		do
			error = uh_await_stop(remote->tid, uh_now() + 1000000000ull, signal);
		while (error == -EAGAIN);
	if (!*signal)
		uh_repair_interrupted_call(remote->pid, remote->tid, &w->note);
}

#else
/* Not empty, as ISO C wants it. */
typedef int uh_no_frame_of_x86_64;
#endif

/* remote_aarch64.c - the signal frame of a remote call on AArch64; see remote.c.
 *
 * An injected `svc #0; ret` returns to x30, which is the vdso's __kernel_rt_sigreturn,
 * with the frame at the stack pointer. There is no red zone (AAPCS64), so the frame
 * begins right below the thread's own stack pointer.
 */
#if defined(__aarch64__)

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include "arch_host.h"
#include "remote_frame.h"

#ifndef NT_ARM_SVE
#define NT_ARM_SVE 0x405
#endif
#ifndef NT_ARM_SSVE
#define NT_ARM_SSVE 0x40b
#endif
#ifndef NT_ARM_ZA
#define NT_ARM_ZA 0x40c
#endif

/* <asm/sigcontext.h> cannot stand beside <signal.h>. */
#define FPSIMD_MAGIC 0x46508001u
#define SVE_MAGIC 0x53564501u
/* Neither SS_ONSTACK nor SS_DISABLE nor any of SS_FLAG_BITS. */
#define NO_MODE 0x10
/* PSTATE.BTYPE: where it is not 0, the next instruction has to be a landing pad. */
#define BTYPE 0xc00u
/* What the kernel's frame has room for without a record of its own for more. */
#define RESERVED 4096

struct head {
	uint32_t magic;
	uint32_t size;
};

struct fpsimd {
	struct head head;
	uint32_t fpsr;
	uint32_t fpcr;
	uint8_t vregs[512];
};

/* struct user_sve_header, and what comes behind it: the registers, from 16 on, in the
 * order of the signal frame's record. */
struct sve {
	uint32_t size;
	uint32_t max_size;
	uint16_t vl;
	uint16_t max_vl;
	uint16_t flags;
	uint16_t reserved;
	uint8_t registers[RESERVED];
};
#define SVE_IN_USE 1

struct frame {
	uint8_t info[128];
	struct {
		uint64_t flags, link;
		struct {
			uint64_t sp;
			int32_t flags;
			int32_t pad;
			uint64_t size;
		} stack;
		uint64_t sigmask;
		uint8_t unused[120];
		uint8_t align[8];
		struct {
			uint64_t fault_address;
			uint64_t regs[31];
			uint64_t sp;
			uint64_t pc;
			uint64_t pstate;
			uint64_t align;
			uint8_t records[RESERVED];
		} mc;
	} uc;
};

_Static_assert(offsetof(struct frame, uc.mc) == 128 + 176, "struct rt_sigframe");
_Static_assert(offsetof(struct frame, uc.mc.pc) == 568, "struct rt_sigframe");
_Static_assert(offsetof(struct frame, uc.mc.records) == 592, "struct rt_sigframe");
_Static_assert(sizeof(struct fpsimd) == 528, "struct fpsimd_context");

static _Thread_local struct sve sve;

/* Vectors are in use that are longer than 128 bits: 1, and `sve` holds them. A system call
 * takes the rest of them away (Documentation/arch/arm64/sve.rst, 3). -EAGAIN: more than
 * that is in use, which comes and goes: streaming mode, ZA. */
static int read_sve(pid_t tid)
{
	struct { uint32_t size, max_size; uint16_t vl, max_vl, flags, reserved; } other;
	struct iovec io = { &other, sizeof other };

	if (!ptrace(PTRACE_GETREGSET, tid, NT_ARM_SSVE, &io) && (other.flags & SVE_IN_USE))
		return -EAGAIN;
	io = (struct iovec){ &other, sizeof other };
	if (!ptrace(PTRACE_GETREGSET, tid, NT_ARM_ZA, &io) && other.size > sizeof other)
		return -EAGAIN;
	io = (struct iovec){ &sve, sizeof sve };
	if (ptrace(PTRACE_GETREGSET, tid, NT_ARM_SVE, &io) || !(sve.flags & SVE_IN_USE))
		return 0;
	return sve.size <= sizeof sve ? 1 : -EAGAIN;
}

/* Z0-Z31, P0-P15 and FFR (<asm/sve_context.h>). */
static uint32_t sve_bytes(void)
{
	return sve.vl * 32 + sve.vl / 8 * 16 + sve.vl / 8;
}

/* The records behind the registers. */
static int put_records(pid_t tid, uint8_t *records, int has_sve)
{
	struct { uint8_t vregs[512]; uint32_t fpsr, fpcr, pad[2]; } vectors;
	struct iovec io = { &vectors, sizeof vectors };
	struct fpsimd *fpsimd = (void *)records;
	const uint32_t size = (16 + sve_bytes() + 15) & ~15u;
	struct { struct head head; uint16_t vl, flags, reserved[2]; } *longer;

	if (ptrace(PTRACE_GETREGSET, tid, NT_PRFPREG, &io))
		return -errno;
	fpsimd->head = (struct head){ FPSIMD_MAGIC, sizeof *fpsimd };
	fpsimd->fpsr = vectors.fpsr;
	fpsimd->fpcr = vectors.fpcr;
	memcpy(fpsimd->vregs, vectors.vregs, sizeof vectors.vregs);
	if (!has_sve)
		return 0; /* zeros end the records */
	if (sizeof *fpsimd + size + sizeof(struct head) > RESERVED)
		return -EAGAIN;
	longer = (void *)(records + sizeof *fpsimd);
	longer->head = (struct head){ SVE_MAGIC, size };
	longer->vl = sve.vl;
	memcpy(longer + 1, sve.registers, sve_bytes());
	return 0;
}

/* What becomes of the call that the stop has interrupted: nothing, the kernel has seen to
 * it; it is entered again; it goes on by restart_syscall, as the kernel would have had it
 * if nobody had changed the program counter. */
enum { LEAVE_CALL, ENTER_CALL, GO_ON_WITH_CALL };

int uh_build_frame(struct uh_frame *w)
{
	static _Thread_local struct frame frame;
	const struct uh_remote *remote = w->remote;
	struct uh_registers again = w->original;
	const pid_t tid = remote->tid;
	int has_sve, error;
	uint64_t top;

	/* Whose call the gadget is, would find itself restarted in it. */
	if (again.user.pc == remote->gadget)
		return -EAGAIN;
	if (ptrace(PTRACE_GETSIGMASK, tid, 8, &w->sigmask))
		return -errno;
	has_sve = read_sve(tid);
	if (has_sve < 0)
		return has_sve;
	if (!has_sve)
		sve.flags = 0;
	w->call = LEAVE_CALL;
	if (uh_will_restart(remote->pid, tid, &w->original, &w->note))
		w->call = GO_ON_WITH_CALL;
	/* In the frame, only if we die: it waits anew, and no EINTR shows (H69). */
	if (uh_call_was_interrupted(remote->pid, tid, &w->original, &w->note)) {
		w->call = ENTER_CALL;
		uh_reenter_call(&again, &w->note);
	}
	top = remote->frame_top ? remote->frame_top : again.user.sp;
	w->frame_at = (top - sizeof frame) & ~15ull;
	w->altstack_at = w->frame_at + offsetof(struct frame, uc.stack);
	w->stack_at = w->frame_at;
	/* It may have changed stacks since the caller looked (H75). */
	if (w->frame_at - 2048 < remote->stack_low ||
	    (!remote->frame_top && again.user.sp >= remote->stack_high))
		return -ENOSPC;

	memset(&frame, 0, sizeof frame);
	error = put_records(tid, frame.uc.mc.records, has_sve);
	if (error)
		return error;
	/* Until the first call has put the real one there, an alternate stack that is
	 * none: sigreturn then leaves the thread's as it is (kernel/signal.c,
	 * restore_altstack; H76). */
	frame.uc.stack.flags = NO_MODE;
	frame.uc.sigmask = w->sigmask;
	memcpy(frame.uc.mc.regs, again.user.regs, sizeof frame.uc.mc.regs);
	frame.uc.mc.sp = again.user.sp;
	frame.uc.mc.pc = again.user.pc;
	frame.uc.mc.pstate = again.user.pstate;
	return uh_write_exact(remote->mem_fd, &frame, sizeof frame, w->frame_at) ? -EFAULT : 0;
}

void uh_frame_call(const struct uh_frame *w, struct uh_registers *now, int64_t number,
		   const uint64_t args[6])
{
	now->user.regs[8] = number;
	memcpy(now->user.regs, args, 6 * sizeof *args);
	now->user.regs[30] = w->remote->restorer;
	now->user.pc = w->remote->gadget;
	now->user.sp = w->stack_at;
	now->user.pstate &= ~(uint64_t)BTYPE;
}

int64_t uh_call_result(const struct uh_registers *now) { return now->user.regs[0]; }

void uh_frame_routine(const struct uh_frame *w, struct uh_registers *now)
{
	now->user.regs[19] = w->remote->table;
	now->user.pc = w->remote->routine;
	now->user.sp = w->frame_at;
	now->user.pstate &= ~(uint64_t)BTYPE;
}

/* A sigreturn forgets what the kernel has noted of a call to go on with. */
int uh_returns_by_frame(const struct uh_frame *w)
{
	return w->note.number < 0;
}

void uh_leave_frame(struct uh_frame *w, int *signal)
{
	const struct uh_remote *remote = w->remote;
	struct uh_registers back = w->original;
	struct iovec io = { &sve, sve.size };

	(void)signal;
	if (w->call == ENTER_CALL)
		uh_reenter_call(&back, &w->note);
	else if (w->call == GO_ON_WITH_CALL)
		back.user.regs[8] = SYS_restart_syscall;
	uh_forget_call(remote->tid);
	uh_set_registers(remote->tid, &back);
	if (sve.flags & SVE_IN_USE)
		ptrace(PTRACE_SETREGSET, remote->tid, NT_ARM_SVE, &io);
}

#else
/* Not empty, as ISO C wants it. */
typedef int uh_no_frame_of_aarch64;
#endif

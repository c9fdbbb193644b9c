/* signer.c - signing return addresses as the target would; see signer.h. */
#include "signer.h"

#if defined(__aarch64__)

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "arch_host.h"
#include "host.h"

#ifndef NT_ARM_PACA_KEYS
#define NT_ARM_PACA_KEYS 0x407
#endif
#ifndef HWCAP_PACA
#define HWCAP_PACA (1ul << 30)
#endif

/* A function's stack pointer at its entry signs; its frame lies below that. The longest
 * frame whose signature is looked for, in steps of 16 bytes. */
#define LONGEST_FRAME 262144
#define ANSWER_NANOS 1000000000ull

/* x0 = the signed word, x1 = what was signed, x2 = the first stack pointer to try, x3 = how
 * many, x4 = what to sign instead; x0 = that, or 0, at the brk. */
void uh_sign_routine(void);
__asm__("	.arch_extension pauth\n"
	"	.text\n"
	"	.hidden	uh_sign_routine\n"
	"	.globl	uh_sign_routine\n"
	"	.type	uh_sign_routine, %function\n"
	"uh_sign_routine:\n"
	"1:	mov	x5, x1\n"
	"	mov	x6, x1\n"
	"	pacia	x5, x2\n"
	"	pacib	x6, x2\n"
	"	cmp	x5, x0\n"
	"	b.eq	2f\n"
	"	cmp	x6, x0\n"
	"	b.eq	3f\n"
	"	add	x2, x2, #16\n"
	"	subs	x3, x3, #1\n"
	"	b.ne	1b\n"
	"	mov	x4, #0\n"
	"	b	4f\n"
	"2:	pacia	x4, x2\n"
	"	b	4f\n"
	"3:	pacib	x4, x2\n"
	"4:	mov	x0, x4\n"
	"	brk	#0\n");

/* apiakey, apibkey, apdakey, apdbkey (struct user_pac_address_keys). */
struct keys {
	uint64_t words[8];
};

static _Thread_local pid_t child;
static _Thread_local pid_t keys_of; /* whose keys it has */
static _Thread_local struct uh_registers at_rest;

void uh_stop_signer(void)
{
	if (child <= 0)
		return;
	kill(child, SIGKILL);
	waitpid(child, 0, __WALL);
	child = 0;
}

void uh_start_signer(void)
{
	int signal;

	child = keys_of = 0;
	if (!(getauxval(AT_HWCAP) & HWCAP_PACA))
		return;
	/* No handlers of this process's libraries run, and no signal tells of its end: of a
	 * program of many threads the child may do nothing but wait. */
	child = (pid_t)syscall(SYS_clone, 0, 0, 0, 0, 0);
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			syscall(SYS_ppoll, 0, 0, 0, 0, 0);
	}
	if (child < 0)
		return;
	if (uh_seize(child, 0) || ptrace(PTRACE_INTERRUPT, child, 0, 0) ||
	    uh_await_stop(child, uh_now() + ANSWER_NANOS, &signal) ||
	    uh_get_registers(child, &at_rest) || uh_forget_call(child))
		uh_stop_signer();
}

static int take_keys(pid_t tid)
{
	struct keys keys;
	struct iovec io = { &keys, sizeof keys };

	if (keys_of == tid)
		return 0;
	/* Kernels without CONFIG_CHECKPOINT_RESTORE do not show them. */
	if (ptrace(PTRACE_GETREGSET, tid, NT_ARM_PACA_KEYS, &io) ||
	    ptrace(PTRACE_SETREGSET, child, NT_ARM_PACA_KEYS, &io))
		return -errno;
	keys_of = tid;
	return 0;
}

uint64_t uh_sign_again(pid_t tid, uint64_t at, uint64_t word, uint64_t from, uint64_t to)
{
	struct uh_registers now = at_rest;
	int signal;

	if (child <= 0 || take_keys(tid))
		return 0;
	now.user.regs[0] = word;
	now.user.regs[1] = from;
	now.user.regs[2] = (at + 8 + 15) & ~15ull;
	now.user.regs[3] = LONGEST_FRAME / 16;
	now.user.regs[4] = to;
	now.user.pc = (uint64_t)&uh_sign_routine;
	if (uh_set_registers(child, &now) || ptrace(PTRACE_CONT, child, 0, 0) ||
	    uh_await_stop(child, uh_now() + ANSWER_NANOS, &signal) || signal != SIGTRAP ||
	    uh_get_registers(child, &now)) {
		uh_stop_signer();
		return 0;
	}
	return now.user.regs[0];
}

#else

void uh_start_signer(void) {}
void uh_stop_signer(void) {}

uint64_t uh_sign_again(pid_t tid, uint64_t at, uint64_t word, uint64_t from, uint64_t to)
{
	(void)tid;
	(void)at;
	(void)word;
	(void)from;
	(void)to;
	return 0;
}

#endif

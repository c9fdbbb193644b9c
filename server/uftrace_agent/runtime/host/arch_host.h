/* arch_host.h - registers, calls and signal frames, per machine, behind one set of
 * functions. */
#ifndef UH_ARCH_HOST_H
#define UH_ARCH_HOST_H

#include "host.h"

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

#include "../target/annex.h"

/* Calls that the kernel does not restart after a stop, and that lose nothing
 * by being entered again (signal(7), "Interruption of system calls"). */
static inline int uh_ends_by_stop(int64_t number)
{
	switch (number) {
#ifdef SYS_epoll_wait /* not on later architectures */
	case SYS_epoll_wait:
#endif
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

#if defined(__x86_64__)
#include "arch_x86_64.h"
#elif defined(__aarch64__)
#include "arch_aarch64.h"
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

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
#include "remote_frame.h"

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

static int inject(struct uh_frame *w, int64_t number, const uint64_t args[6], int64_t *result)
{
	struct uh_registers now = w->original;
	uint64_t deadline = uh_now() + w->remote->deadline_nanos;
	pid_t tid = w->remote->tid;
	int error;

	uh_frame_call(w, &now, number, args);
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
		*result = uh_call_result(&now);
	return error;
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
static int call_in_one_go(struct uh_frame *w)
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
	call[2] = w->altstack_at;
	for (uint32_t i = 0; i < remote->call_count; i++) {
		call += UF_CALL_BYTES / 8;
		call[0] = remote->calls[i].number;
		memcpy(call + 1, remote->calls[i].args, 48);
		call[7] = 0;
	}
	size = UF_CALLS_ENTRIES + UF_CALL_BYTES * (remote->call_count + 1);
	if (uh_write_exact(remote->mem_fd, table, size, remote->table))
		return -EFAULT;
	uh_frame_routine(w, &now);
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
	static _Thread_local struct uh_frame w;
	struct uh_remote *remote = argument;
	uint64_t begin, ignored[6] = { 0 };
	int64_t result;
	int error, signal;

	w.remote = remote;
	uh_hurry(1);
	error = uh_seize(remote->tid, PTRACE_O_TRACESYSGOOD);
	if (error)
		return error;
	error = uh_interrupt(remote->pid, remote->tid, &w.note);
	if (error)
		return error;
	do
		error = uh_await_stop(remote->tid, uh_now() + remote->deadline_nanos, &signal);
	while (error == -EAGAIN);
	if (error) {
		uh_release_late(remote->pid, remote->tid, &w.note, uh_now() + UH_LATE_NANOS);
		return error;
	}
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
		error = uh_build_frame(&w);
	if (error) {
		uh_repair_interrupted_call(remote->pid, remote->tid, &w.note);
		uh_detach(remote->tid, 0);
		return error;
	}

	if (remote->routine && remote->call_count <= UF_CALLS_CAPACITY && uh_returns_by_frame(&w)) {
		error = call_in_one_go(&w);
		if (error != -EINPROGRESS)
			remote->pause_nanos = uh_now() - begin;
		return error;
	}

	/* sigreturn sets the alternate stack from the frame (H76): the first call
	 * puts the real one there. */
	ignored[1] = w.altstack_at;
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
	uh_leave_frame(&w, &signal);
	uh_detach(remote->tid, signal);
	remote->pause_nanos = uh_now() - begin;
	return error;
}

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
	struct uh_call_note note;
	int error = uh_seize(l->tid, PTRACE_O_TRACESYSGOOD), signal;

	if (error)
		return error;
	uh_interrupt(l->pid, l->tid, &note);
	do
		error = uh_await_stop(l->tid, uh_now() + l->deadline_nanos, &signal);
	while (error == -EAGAIN);
	if (error) {
		uh_release_late(l->pid, l->tid, &note, uh_now() + UH_LATE_NANOS);
		return error;
	}
	error = uh_get_registers(l->tid, &registers);
	l->pc = uh_pc(&registers);
	l->sp = uh_sp(&registers);
	l->thread_pointer = uh_thread_pointer(l->tid, &registers);
	if (!signal)
		uh_repair_interrupted_call(l->pid, l->tid, &note);
	uh_detach(l->tid, signal);
	return error;
}

/* The program counter, stack pointer and thread pointer of one thread. */
UH_API int uh_look(struct thread_look *l)
{
	return uh_run_as_tracer(look, l);
}

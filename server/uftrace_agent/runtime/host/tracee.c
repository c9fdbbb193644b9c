/* tracee.c - stopping one thread so that it never notices, whoever dies.
 *
 * SEIZE and INTERRUPT only: never ATTACH (a visible SIGSTOP), single steps,
 * breakpoints or EXITKILL, each of which kills the target or shows when the
 * tracer dies at the wrong moment (H72). Stops are looked at with WNOWAIT: a
 * signal that was reaped and not delivered yet would die with us (H73).
 */
#include "host.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "arch_host.h"

/* How often it is looked at whether a late thread still waits for a processor. */
#define LATE_LOOK_NANOS 20000000ull

uint64_t uh_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

/* Threads beyond the rows that there are count as one, under the last row. */
void uh_note_pause(struct uh_pause *pause, pid_t tid, uint64_t nanos)
{
	uint32_t i = 0;

	if (!pause->capacity)
		return;
	while (i < pause->count && pause->rows[i].tid != tid)
		i++;
	if (i == pause->capacity)
		i--;
	else if (i == pause->count)
		pause->rows[pause->count++] = (struct uh_thread_pause){ tid, 0, 0 };
	if (nanos > pause->rows[i].nanos) {
		pause->rows[i].tid = tid;
		pause->rows[i].nanos = nanos;
	}
}

int uh_read_exact(int fd, void *data, size_t size, uint64_t address)
{
	return pread(fd, data, size, address) == (ssize_t)size ? 0 : -EFAULT;
}

int uh_write_exact(int fd, const void *data, size_t size, uint64_t address)
{
	ssize_t done = pwrite(fd, data, size, address);

	return done == (ssize_t)size ? 0 : done < 0 ? -errno : -EFAULT;
}

int uh_seize(pid_t tid, unsigned long options)
{
	return ptrace(PTRACE_SEIZE, tid, 0, options) ? -errno : 0;
}

/* Ask a seized thread to stop. What has to be known of the call that this interrupts is
 * noted first. */
int uh_interrupt(pid_t pid, pid_t tid, struct uh_call_note *note)
{
	uh_note_call(pid, tid, note);
	return ptrace(PTRACE_INTERRUPT, tid, 0, 0) ? -errno : 0;
}

/* Wait until the thread is stopped. A signal that it was about to receive is
 * not lost: *signal is to be handed back with the detach. *in_call: it is at
 * the entry or exit of a system call. */
int uh_await_any(pid_t tid, uint64_t deadline, int *signal, int *in_call)
{
	unsigned spins = 0;

	*signal = 0;
	*in_call = 0;
	for (;;) {
		siginfo_t info;
		int event;

		info.si_pid = 0;
		if (waitid(P_PID, tid, &info, WSTOPPED | WEXITED | WNOWAIT | WNOHANG | __WALL))
			return errno == EINTR ? -EAGAIN : -ESRCH;
		if (info.si_pid == tid) {
			if (info.si_code == CLD_EXITED || info.si_code == CLD_KILLED ||
			    info.si_code == CLD_DUMPED)
				return -ESRCH;
			event = info.si_status >> 8;
			*in_call = info.si_status == (SIGTRAP | 0x80);
			if (!event && !*in_call)
				*signal = info.si_status;
			return 0;
		}
		if (uh_now() > deadline)
			return -ETIMEDOUT;
		/* A running thread stops within microseconds, a preempted one when
		 * it is scheduled: spin first, then leave it the processor. */
		if (++spins > 20) {
			struct timespec pause = { 0, spins > 200 ? 100000 : 10000 };

			nanosleep(&pause, 0);
		}
	}
}

int uh_await_stop(pid_t tid, uint64_t deadline, int *signal)
{
	int in_call;

	return uh_await_any(tid, deadline, signal, &in_call);
}

void uh_detach(pid_t tid, int signal)
{
	ptrace(PTRACE_DETACH, tid, 0, (long)signal);
}

/* Is a signal waiting that the thread would take as soon as it runs? */
static int signal_is_pending(pid_t pid, pid_t tid)
{
	char path[64], text[4096];
	unsigned long own = 0, shared = 0, blocked = 0;
	const char *line;
	ssize_t size;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/task/%d/status", pid, tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 1;
	size = read(fd, text, sizeof text - 1);
	close(fd);
	if (size <= 0)
		return 1;
	text[size] = 0;
	if ((line = strstr(text, "\nSigPnd:")))
		sscanf(line + 8, "%lx", &own);
	if ((line = strstr(text, "\nShdPnd:")))
		sscanf(line + 8, "%lx", &shared);
	if ((line = strstr(text, "\nSigBlk:")))
		sscanf(line + 8, "%lx", &blocked);
	return ((own | shared) & ~blocked) != 0;
}

/* Calls like epoll_wait end with EINTR by the stop alone (H69). Where no signal
 * caused it, make the thread enter the call again. */
int uh_repair_interrupted_call(pid_t pid, pid_t tid, const struct uh_call_note *note)
{
	struct uh_registers registers;
	int error = uh_get_registers(tid, &registers);

	if (error)
		return error;
	if (!uh_call_was_interrupted(pid, tid, &registers, note) || signal_is_pending(pid, tid))
		return 0;
	uh_reenter_call(&registers, note);
	return uh_set_registers(tid, &registers);
}

/* The letter of /proc/PID/task/TID/stat; 'X' where there is none. */
static char thread_letter(pid_t pid, pid_t tid)
{
	char path[64], text[256] = "", letter = 'X';
	const char *behind_name;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/task/%d/stat", pid, tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return letter;
	if (read(fd, text, sizeof text - 1) > 0 && (behind_name = strrchr(text, ')')))
		sscanf(behind_name + 1, " %c", &letter);
	close(fd);
	return letter;
}

/* Let a thread go that was asked to stop and has not done so in time. One that only
 * waits for a processor has left its system call already, and must not find an EINTR there
 * (H69): it is waited for, while nobody else is stopped. Who cannot run (D state, frozen)
 * is let go by the end of the calling thread. */
void uh_release_late(pid_t pid, pid_t tid, const struct uh_call_note *note, uint64_t until)
{
	int error, signal, runs;

	do {
		runs = thread_letter(pid, tid) == 'R';
		error = uh_await_stop(tid, runs ? uh_now() + LATE_LOOK_NANOS : 0, &signal);
		if (!error) {
			if (!signal)
				uh_repair_interrupted_call(pid, tid, note);
			uh_detach(tid, signal);
			return;
		}
	} while (runs && error != -ESRCH && uh_now() < until);
}

/* trap.c - the `trap` writer: several bytes of an instruction, while it is executed.
 *
 * A trap goes over the first byte of every site, then the other bytes change,
 * then the first one does; between the three, every processor is made to look at
 * its instructions anew. Who meets a trap meanwhile is sent on by the target's
 * own handler (target/trap.c), which this side sees to beforehand. The order is
 * that of the kernel's smp_text_poke_batch_finish (arch/x86/kernel/alternative.c).
 */
#include "host.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "arch_host.h"

#ifndef __WNOTHREAD
#define __WNOTHREAD 0x20000000 /* <linux/wait.h> */
#endif

/* ---- the barrier ---- */

/* Run on every processor that is online: whatever thread of the target ran there is
 * interrupted, and comes back through a change of address spaces or an interrupt's
 * return, both of which make the processor fetch its instructions anew (Intel SDM
 * volume 3, 9.3, "Serializing instructions"). It takes nothing of the target, as
 * membarrier would, and no processor is asked to wait. */
static int visit_processors(const cpu_set_t *processors)
{
	int error = 0;

	uh_hurry(1);
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		cpu_set_t one;

		if (!CPU_ISSET(cpu, processors))
			continue;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		/* The call returns on that processor. */
		if (sched_setaffinity(0, sizeof one, &one))
			error = -errno;
	}
	uh_hurry(0);
	return error;
}

/* The processors of /sys/devices/system/cpu/online: "0-3,8". */
static int online_processors(cpu_set_t *processors)
{
	char text[1024], *at = text;
	FILE *file = fopen("/sys/devices/system/cpu/online", "re");

	if (!file)
		return -errno;
	if (!fgets(text, sizeof text, file))
		text[0] = 0;
	fclose(file);
	CPU_ZERO(processors);
	while (*at >= '0' && *at <= '9') {
		long first = strtol(at, &at, 10), last = first;

		if (*at == '-')
			last = strtol(at + 1, &at, 10);
		if (last >= CPU_SETSIZE)
			return -E2BIG;
		for (long cpu = first; cpu <= last; cpu++)
			CPU_SET(cpu, processors);
		at += *at == ',';
	}
	return CPU_COUNT(processors) ? 0 : -ENODATA;
}

static int look_at_processors(void *argument)
{
	cpu_set_t processors;
	int error = online_processors(&processors);

	(void)argument;
	return error ? error : visit_processors(&processors);
}

/* Whether the agent may run on every processor: 0, or a negative errno. */
UH_API int uh_can_visit_processors(void)
{
	return uh_run_as_tracer(look_at_processors, 0);
}

/* ---- the phases ---- */

static int is_pending(const struct uh_site *site)
{
	return site->status == UH_SITE_UNTOUCHED;
}

static void write_byte(int mem_fd, struct uh_site *site, uint8_t byte)
{
	if (uh_write_exact(mem_fd, &byte, 1, site->address))
		site->status = UH_SITE_FAILED;
}

/* Which sites are as they are expected to be; the others are left alone. */
static void look(struct uh_trap *trap)
{
	for (uint32_t i = 0; i < trap->site_count; i++) {
		struct uh_site *site = &trap->sites[i];
		uint8_t live[16];

		site->status = UH_SITE_FAILED;
		if (uh_read_exact(trap->mem_fd, live, site->length, site->address))
			continue;
		if (!memcmp(live, site->wanted, site->length))
			site->status = UH_SITE_ALREADY;
		else if (memcmp(live, site->expected, site->length))
			site->status = UH_SITE_CONFLICT;
		else
			site->status = UH_SITE_UNTOUCHED;
	}
}

static void write_tail(int mem_fd, struct uh_site *site, const uint8_t *code)
{
	int first = 0, last = 0;

	for (int k = 1; k < site->length; k++)
		if (site->expected[k] != site->wanted[k]) {
			if (!first)
				first = k;
			last = k;
		}
	if (first && uh_write_exact(mem_fd, code + first, last - first + 1, site->address + first))
		site->status = UH_SITE_FAILED;
}

static void write_tails(struct uh_trap *trap, int back)
{
	for (uint32_t i = 0; i < trap->site_count; i++) {
		struct uh_site *site = &trap->sites[i];

		if (is_pending(site))
			write_tail(trap->mem_fd, site, back ? site->expected : site->wanted);
	}
}

static int run(void *argument)
{
	struct uh_trap *trap = argument;
	cpu_set_t processors;
	int error = online_processors(&processors);

	if (!error)
		error = visit_processors(&processors);
	if (error)
		return error; /* nothing was changed */
	look(trap);
	for (uint32_t i = 0; i < trap->site_count; i++)
		if (is_pending(&trap->sites[i]))
			write_byte(trap->mem_fd, &trap->sites[i], UH_TRAP_BYTE);
	error = visit_processors(&processors);
	if (!error) {
		write_tails(trap, 0);
		error = visit_processors(&processors);
		if (error)
			write_tails(trap, 1);
	}
	/* A processor was taken away from us: back to where they were. */
	if (error)
		visit_processors(&processors);
	for (uint32_t i = 0; i < trap->site_count; i++) {
		struct uh_site *site = &trap->sites[i];

		if (!is_pending(site))
			continue;
		write_byte(trap->mem_fd, site, error ? site->expected[0] : site->wanted[0]);
		if (is_pending(site))
			site->status = error ? UH_SITE_FAILED : UH_SITE_WRITTEN;
	}
	visit_processors(&processors);
	return error;
}

/* Change the sites while the program runs. Its handler of SIGTRAP must be ours, and
 * know the sites. 0, or a negative errno (then the sites are as they were). */
UH_API int uh_trap_write(struct uh_trap *trap)
{
	return uh_run_as_tracer(run, trap);
}

/* ---- afterwards: is any trap still on its way to the handler? ---- */

static int read_text(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got;

	if (fd < 0)
		return -errno;
	got = read(fd, text, size - 1);
	close(fd);
	if (got < 0)
		return -errno;
	text[got] = 0;
	return 0;
}

static int trap_is_pending(pid_t pid, pid_t tid)
{
	char path[64], text[4096];
	unsigned long pending = 0;
	const char *line;

	snprintf(path, sizeof path, "/proc/%d/task/%d/status", pid, tid);
	if (read_text(path, text, sizeof text))
		return 0;
	line = strstr(text, "\nSigPnd:");
	if (line)
		sscanf(line + 8, "%lx", &pending);
	return pending >> (SIGTRAP - 1) & 1;
}

static int is_in_handler(const struct uh_trap *trap, uint64_t pc)
{
	return pc >= trap->handler.start && pc < trap->handler.end;
}

/* A thread that is inside a system call has no trap on its way: it could not have
 * made the call, unless the handler did. Any other may be in the kernel's own code
 * between the two. */
static int is_in_call(const struct uh_trap *trap, pid_t tid)
{
	char path[64], text[256], *pc;

	snprintf(path, sizeof path, "/proc/%d/task/%d/syscall", trap->pid, tid);
	if (read_text(path, text, sizeof text) || text[0] < '0' || text[0] > '9')
		return 0;
	pc = strrchr(text, ' '); /* the last field */
	return pc && !is_in_handler(trap, strtoull(pc, 0, 16));
}

/* Ask every thread that runs to stop; how many were asked, or an error. *listed: how many
 * there are. */
static int interrupt_running(const struct uh_trap *trap, pid_t *tids, int *listed)
{
	int asked = 0;

	*listed = uh_list_threads(trap->pid, tids, UH_MAX_THREADS);
	for (int i = 0; i < *listed; i++) {
		/* Who cannot be seized is ending. */
		if (is_in_call(trap, tids[i]) || uh_seize(tids[i], PTRACE_O_TRACESYSGOOD))
			continue;
		ptrace(PTRACE_INTERRUPT, tids[i], 0, 0);
		asked++;
	}
	return *listed < 0 ? *listed : asked;
}

/* Look at one thread that has stopped, and let it go on at once. At a stop, a trap that
 * was met is the signal being delivered, or waits, or the thread is in the handler:
 * no other handler can be on top of that, since it blocks all signals. */
static int look_at_stopped(struct uh_trap *trap, const siginfo_t *info)
{
	const uint64_t stopped_at = uh_now();
	const pid_t tid = info->si_pid;
	struct uh_registers registers;
	struct uh_call_note none;
	int signal = 0, pending;

	if (info->si_code == CLD_EXITED || info->si_code == CLD_KILLED ||
	    info->si_code == CLD_DUMPED) {
		waitpid(tid, 0, WNOHANG | __WALL);
		return 0;
	}
	if (!(info->si_status >> 8) && info->si_status != (SIGTRAP | 0x80))
		signal = info->si_status;
	pending = signal == SIGTRAP || trap_is_pending(trap->pid, tid) ||
		  uh_get_registers(tid, &registers) || is_in_handler(trap, uh_pc(&registers));
	uh_note_no_call(&none); /* it ran when it was asked */
	if (!signal)
		uh_repair_interrupted_call(trap->pid, tid, &none);
	uh_detach(tid, signal);
	uh_note_pause(&trap->pause, tid, uh_now() - stopped_at);
	return pending;
}

static int settle_with(struct uh_trap *trap, pid_t *tids)
{
	const uint64_t deadline = uh_now() + trap->deadline_nanos;
	struct uh_call_note none;
	int asked, again, listed;

	uh_note_no_call(&none);
	uh_hurry(1);
	do {
		again = 0;
		asked = interrupt_running(trap, tids, &listed);
		if (asked < 0)
			return asked;
		for (unsigned spins = 0; asked; spins++) {
			const struct timespec pause = { 0, 20000 };
			siginfo_t info;

			info.si_pid = 0;
			/* __WNOTHREAD: those that this thread traces. */
			if (waitid(P_ALL, 0, &info, WSTOPPED | WEXITED | WNOWAIT | WNOHANG | __WALL |
				   __WNOTHREAD)) {
				if (errno == ECHILD)
					break;
				continue;
			}
			if (info.si_pid) {
				again |= look_at_stopped(trap, &info);
				asked--;
				spins = 0;
			} else if (uh_now() > deadline) {
				const uint64_t until = uh_now() + UH_LATE_NANOS;

				for (int i = 0; i < listed; i++)
					uh_release_late(trap->pid, tids[i], &none, until);
				return -ETIMEDOUT;
			} else if (spins > 20) {
				nanosleep(&pause, 0);
			}
		}
	} while (again && uh_now() < deadline);
	return again ? -ETIMEDOUT : 0;
}

static int settle(void *argument)
{
	pid_t *tids = malloc(UH_MAX_THREADS * sizeof *tids);
	const int error = tids ? settle_with(argument, tids) : -ENOMEM;

	free(tids);
	return error;
}

/* Wait until no thread has met a trap without having been in the handler; only
 * threads that run are looked at, each by itself. 0; -ETIMEDOUT: ask again later. */
UH_API int uh_trap_settle(struct uh_trap *trap)
{
	return uh_run_as_tracer(settle, trap);
}

/* stop.c - the `stop` writer: freeze all threads, check, write, thaw. */
#include "host.h"

#include "../target/annex.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "arch_host.h"

#define MAX_THREADS 16384

static _Thread_local struct uh_tracee *tracees;

static int known(pid_t tid, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		if (tracees[i].tid == tid)
			return 1;
	return 0;
}

/* Seize every thread that is not seized yet; how many were added, or an error.
 * Threads that end meanwhile, and a leader that has ended (H64), are none. */
static int seize_new(pid_t pid, uint32_t *count)
{
	char path[64];
	struct dirent *entry;
	DIR *tasks;
	int added = 0, error = 0;

	snprintf(path, sizeof path, "/proc/%d/task", pid);
	tasks = opendir(path);
	if (!tasks)
		return -ESRCH;
	while (!error && (entry = readdir(tasks))) {
		pid_t tid = atoi(entry->d_name);

		if (tid <= 0 || known(tid, *count))
			continue;
		if (*count == MAX_THREADS) {
			error = -E2BIG;
			break;
		}
		/* TRACECLONE: threads made from now on begin stopped (H65). */
		error = uh_seize(tid, PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE);
		if (error == -ESRCH || error == -EPERM) {
			char state = 'Z', status[256] = "";
			FILE *file;

			snprintf(path, sizeof path, "/proc/%d/task/%d/stat", pid, tid);
			file = fopen(path, "r");
			if (file) {
				if (fgets(status, sizeof status, file) && strrchr(status, ')'))
					sscanf(strrchr(status, ')') + 1, " %c", &state);
				fclose(file);
			}
			if (error == -ESRCH || state == 'Z' || state == 'X') {
				error = 0;
				continue;
			}
			/* A clone of one of ours that is traced already. */
			if (!ptrace(PTRACE_INTERRUPT, tid, 0, 0))
				error = 0;
			else
				break;
		}
		if (error)
			break;
		ptrace(PTRACE_INTERRUPT, tid, 0, 0);
		memset(&tracees[*count], 0, sizeof tracees[0]);
		tracees[(*count)++].tid = tid;
		added++;
	}
	closedir(tasks);
	return error ? error : added;
}

static int freeze(pid_t pid, uint64_t deadline, uint32_t *count)
{
	uint32_t stopped = 0;

	for (;;) {
		int added = seize_new(pid, count);

		if (added < 0)
			return added;
		if (!added && stopped == *count)
			return *count ? 0 : -ESRCH;
		for (; stopped < *count; stopped++) {
			struct uh_tracee *tracee = &tracees[stopped];
			int error;

			do
				error = uh_await_stop(tracee->tid, deadline, &tracee->signal);
			while (error == -EAGAIN);
			if (error == -ESRCH) {
				waitpid(tracee->tid, 0, WNOHANG | __WALL);
				tracee->tid = 0;
				continue;
			}
			if (error)
				return error;
			tracee->stopped_at = uh_now();
		}
	}
}

/* Let all go again. A thread that did not stop yet (D state, frozen) cannot be
 * detached by request; the end of the calling thread does it (see worker.c). */
static void thaw(pid_t pid, uint32_t count, struct uh_pause *pause)
{
	for (uint32_t i = 0; i < count; i++) {
		struct uh_tracee *tracee = &tracees[i];
		uint64_t now;

		if (!tracee->tid || !tracee->stopped_at)
			continue;
		if (!tracee->signal)
			uh_repair_interrupted_call(pid, tracee->tid);
		uh_detach(tracee->tid, tracee->signal);
		now = uh_now();
		if (tracee->stopped_at && now - tracee->stopped_at > pause->longest_nanos) {
			pause->longest_nanos = now - tracee->stopped_at;
			pause->longest_tid = tracee->tid;
		}
	}
}

static int in_forbidden_range(const struct uh_stop *stop, uint64_t pc)
{
	uint32_t low = 0, high = stop->range_count;

	while (low < high) {
		uint32_t middle = (low + high) / 2;

		if (pc >= stop->ranges[middle].end)
			low = middle + 1;
		else
			high = middle;
	}
	return low < stop->range_count && pc >= stop->ranges[low].start;
}

static int check_counters(struct uh_stop *stop, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		struct uh_registers registers;
		int error;

		if (!tracees[i].tid)
			continue;
		error = uh_get_registers(tracees[i].tid, &registers);
		if (error == -ESRCH)
			continue; /* killed meanwhile */
		if (error)
			return error;
		tracees[i].pc = uh_pc(&registers);
		tracees[i].sp = uh_sp(&registers);
		if (in_forbidden_range(stop, tracees[i].pc))
			return -EAGAIN;
	}
	return 0;
}

/* Where the memory that `sp` points into ends; a little behind it where that
 * memory was mapped since the caller looked. */
static uint64_t stack_end(const struct uh_stop *stop, uint64_t sp)
{
	uint32_t low = 0, high = stop->stack_count;

	while (low < high) {
		uint32_t middle = (low + high) / 2;

		if (sp >= stop->stacks[middle].end)
			low = middle + 1;
		else
			high = middle;
	}
	if (low < stop->stack_count && sp >= stop->stacks[low].start)
		return stop->stacks[low].end;
	return sp + 65536;
}

/* Words of one stack that are thunks become the return addresses they stand
 * for: the thread goes home without us, and the thunks are free. */
static void restore_frames(struct uh_stop *stop, uint64_t sp)
{
	static _Thread_local uint64_t words[8192];
	const uint64_t end = stack_end(stop, sp);

	for (uint64_t at = sp & ~7ull; at + 8 <= end;) {
		size_t want = end - at < sizeof words ? end - at : sizeof words;
		ssize_t got = pread(stop->mem_fd, words, want, at);

		if (got < 8)
			return;
		for (uint32_t i = 0; i < got / 8; i++) {
			uint64_t offset = words[i] - stop->thunks, real;

			/* A word that leads to the thunk's call is of a function that is
			 * about to be entered, and stays. */
			if (offset >= stop->thunk_span ||
			    offset % UF_THUNK_BYTES != UF_THUNK_RETURN)
				continue;
			real = stop->slots[offset / UF_THUNK_BYTES * (UF_SLOT_BYTES / 8)];
			if (real && !uh_write_exact(stop->mem_fd, &real, 8, at + i * 8))
				stop->pause.frames++;
		}
		at += got / 8 * 8;
	}
}

static int attempt(struct uh_stop *stop)
{
	uint64_t deadline = uh_now() + stop->deadline_nanos;
	uint32_t count = 0;
	int error = freeze(stop->pid, deadline, &count);

	if (!error)
		error = check_counters(stop, count);
	if (!error) {
		error = uh_write_sites(stop->mem_fd, stop->sites, stop->site_count);
		if (!error && stop->thunks)
			for (uint32_t i = 0; i < count; i++)
				if (tracees[i].tid)
					restore_frames(stop, tracees[i].sp);
	}
	thaw(stop->pid, count, &stop->pause);
	if (count > stop->pause.threads)
		stop->pause.threads = count;
	return error;
}

static int run(void *argument)
{
	struct uh_stop *stop = argument;
	int error = 0;

	tracees = malloc(MAX_THREADS * sizeof *tracees);
	if (!tracees)
		return -ENOMEM;
	uh_touch(stop->mem_fd, stop->sites, stop->site_count);
	for (uint32_t i = 0; i < stop->attempts; i++) {
		struct timespec breath = { 0, 200000 << (i < 6 ? i : 6) };

		error = attempt(stop);
		if (error != -EAGAIN && error != -ETIMEDOUT)
			break;
		stop->pause.retries++;
		nanosleep(&breath, 0);
	}
	free(tracees);
	return error;
}

/* Stop all threads, write the sites, let them go. 0; -ETIMEDOUT: some thread
 * did not stop in time, nothing was changed; -EAGAIN: some thread stayed in a
 * forbidden range at every attempt, nothing was changed; -EPERM: somebody else
 * traces the process; -ESRCH: it is gone. */
UH_API int uh_stop_write(struct uh_stop *stop)
{
	memset(&stop->pause, 0, sizeof stop->pause);
	return uh_run_as_tracer(run, stop);
}

/* stop.c - the `stop` writer: freeze all threads, check, write, thaw. */
#include "host.h"

#include "../target/annex.h"

#include <errno.h>
#include <fcntl.h>
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
#include "signer.h"

/* One stopped thread, and what its resumption needs. */
struct uh_tracee {
	pid_t tid;
	int signal; /* to be delivered on resumption, or 0 */
	uint64_t stopped_at;
	uint64_t stopped_for;
	uint64_t pc;
	uint64_t sp;
	struct uh_call_note note;
};

/* A signal handler's stack, that of the handler which it interrupted, and the thread's. */
#define INTERRUPTED_STACKS 3

static _Thread_local struct uh_tracee *tracees;
static _Thread_local pid_t looked_at; /* whose stack or registers these are */
static _Thread_local pid_t *tids;

static int known(pid_t tid, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		if (tracees[i].tid == tid)
			return 1;
	return 0;
}

static int has_ended(pid_t pid, pid_t tid)
{
	char path[64], status[256] = "", state = 'Z';
	int fd;

	snprintf(path, sizeof path, "/proc/%d/task/%d/stat", pid, tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		if (read(fd, status, sizeof status - 1) > 0 && strrchr(status, ')'))
			sscanf(strrchr(status, ')') + 1, " %c", &state);
		close(fd);
	}
	return state == 'Z' || state == 'X';
}

/* Seize every thread that is not seized yet; how many were added, or an error.
 * Threads that end meanwhile, and a leader that has ended (H64), are none. */
static int seize_new(pid_t pid, uint32_t *count)
{
	const int listed = uh_list_threads(pid, tids, UH_MAX_THREADS);
	int added = 0;

	for (int i = 0; i < listed; i++) {
		const pid_t tid = tids[i];
		int error;

		if (known(tid, *count))
			continue;
		if (*count == UH_MAX_THREADS)
			return -E2BIG;
		/* TRACECLONE: threads made from now on begin stopped (H65). */
		error = uh_seize(tid, PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE);
		if (error == -ESRCH || (error == -EPERM && has_ended(pid, tid)))
			continue;
		/* A clone of one of ours is traced already. */
		if (error && error != -EPERM)
			return error;
		memset(&tracees[*count], 0, sizeof tracees[0]);
		if (uh_interrupt(pid, tid, &tracees[*count].note) && error)
			return error;
		tracees[(*count)++].tid = tid;
		added++;
	}
	return listed < 0 ? listed : added;
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

/* Let all go again, those that have not stopped yet at last: they cannot be detached by
 * request before they do (see worker.c). */
static void thaw(pid_t pid, uint32_t count, struct uh_pause *pause)
{
	uint64_t until;

	for (uint32_t i = 0; i < count; i++) {
		struct uh_tracee *tracee = &tracees[i];

		if (!tracee->tid || !tracee->stopped_at)
			continue;
		if (!tracee->signal)
			uh_repair_interrupted_call(pid, tracee->tid, &tracee->note);
		uh_detach(tracee->tid, tracee->signal);
		tracee->stopped_for = uh_now() - tracee->stopped_at;
	}
	for (uint32_t i = 0; i < count; i++)
		if (tracees[i].tid && tracees[i].stopped_at)
			uh_note_pause(pause, tracees[i].tid, tracees[i].stopped_for);
	until = uh_now() + UH_LATE_NANOS;
	for (uint32_t i = 0; i < count; i++)
		if (tracees[i].tid && !tracees[i].stopped_at)
			uh_release_late(pid, tracees[i].tid, &tracees[i].note, until);
}

/* The range that `address` lies in, or 0; ranges by rising address. */
static const struct uh_range *range_of(const struct uh_range *ranges, uint32_t count,
				       uint64_t address)
{
	uint32_t low = 0, high = count;

	while (low < high) {
		uint32_t middle = (low + high) / 2;

		if (address >= ranges[middle].end)
			low = middle + 1;
		else
			high = middle;
	}
	return low < count && address >= ranges[low].start ? &ranges[low] : 0;
}

/* Where who is at `pc` goes on once the sites have changed; 0: right there. */
static uint64_t moved(const struct uh_stop *stop, uint64_t pc)
{
	uint32_t low = 0, high = stop->move_count;

	while (low < high) {
		uint32_t middle = (low + high) / 2;

		if (stop->moves[middle].from < pc)
			low = middle + 1;
		else
			high = middle;
	}
	return low < stop->move_count && stop->moves[low].from == pc ? stop->moves[low].to : 0;
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
		if (range_of(stop->ranges, stop->range_count, tracees[i].pc) &&
		    !moved(stop, tracees[i].pc))
			return -EAGAIN;
	}
	return 0;
}

/* Where the memory that `sp` points into ends; a little behind it where that
 * memory was mapped since the caller looked. */
static uint64_t stack_end(const struct uh_stop *stop, uint64_t sp)
{
	const struct uh_range *stack = range_of(stop->stacks, stop->stack_count, sp);

	return stack ? stack->end : sp + 65536;
}

/* Where the stack goes on that a signal frame interrupted whose mark is at `at`: a handler
 * on an alternate stack leaves what it interrupted on another one. 0: the word is no mark,
 * or the frame is on the stack that it interrupted. */
static uint64_t interrupted_stack(struct uh_stop *stop, uint64_t at, uint64_t word, uint64_t end)
{
	uint64_t sp;

	if (!uh_is_mark(stop->mem_fd, word) ||
	    uh_read_exact(stop->mem_fd, &sp, 8, at + UH_MARK_TO_SP))
		return 0;
	return sp > at && sp < end ? 0 : sp;
}

/* A word of a stack; what to write there, or 0 to leave it, or a negative errno. */
typedef int word_look(struct uh_stop *stop, uint64_t at, uint64_t *word);

/* `depth`: how many more stacks to go to whose owner was interrupted. */
static int walk_stack(struct uh_stop *stop, uint64_t sp, word_look *look, int depth)
{
	uint64_t words[1024], below[4];
	const uint64_t end = stack_end(stop, sp);
	uint32_t found_below = 0;

	for (uint64_t at = sp & ~7ull; at + 8 <= end;) {
		size_t want = end - at < sizeof words ? end - at : sizeof words;
		ssize_t got = pread(stop->mem_fd, words, want, at);

		if (got < 8)
			break;
		for (uint32_t i = 0; i < got / 8; i++) {
			uint64_t other = 0;
			int found;

			/* Told by the words first: a read for each would take long. */
			if (depth && found_below < 4 && uh_may_be_mark(words + i, got / 8 - i))
				other = interrupted_stack(stop, at + i * 8, words[i], end);
			if (other)
				below[found_below++] = other;
			found = look(stop, at + i * 8, &words[i]);
			if (found < 0)
				return found;
			if (found)
				uh_write_exact(stop->mem_fd, &words[i], 8, at + i * 8);
		}
		at += got / 8 * 8;
	}
	for (uint32_t i = 0; i < found_below; i++) {
		int error = walk_stack(stop, below[i], look, depth - 1);

		if (error)
			return error;
	}
	return 0;
}

/* The return address that a slot stands for. The copy was made before the stop: a
 * thread that was in a probe then may have taken a slot since. */
static uint64_t slot_address(const struct uh_stop *stop, uint64_t index)
{
	uint64_t address = stop->slots[index * (UF_SLOT_BYTES / 8)];

	if (!address && uh_read_exact(stop->mem_fd, &address, sizeof address,
				      stop->slot_table + index * UF_SLOT_BYTES))
		return 0;
	return address;
}

/* Thunks become the return addresses they stand for: the thread goes home without
 * us, and the thunks are free. */
static int restore_return(struct uh_stop *stop, uint64_t at, uint64_t *word)
{
	const uint64_t offset = uh_unsigned(*word) - stop->thunks;
	/* Unwinders look a frame up by the byte before the return address. */
	const uint64_t before = offset % UF_THUNK_BYTES == UH_THUNK_RETURN - 1;
	uint64_t real;

	/* A word that leads to the thunk's call is of a function that is about to be
	 * entered, and stays. */
	if (offset >= stop->thunk_span ||
	    (offset % UF_THUNK_BYTES != UH_THUNK_RETURN && !before))
		return 0;
	real = slot_address(stop, offset / UF_THUNK_BYTES);
	if (!real)
		return 0;
	if (uh_unsigned(*word) != *word) {
		real = uh_sign_again(looked_at, at, *word, uh_unsigned(*word), real);
		stop->pause.signed_frames += !real; /* it stays a thunk */
		if (!real)
			return 0;
	}
	*word = real - before;
	stop->pause.frames += !before;
	return 1;
}

/* The program counter that a signal frame saved, if that is what the word is. */
static int is_saved_pc(struct uh_stop *stop, uint64_t at)
{
	uint64_t mark;

	return !uh_read_exact(stop->mem_fd, &mark, 8, at - UH_MARK_TO_PC) &&
	       uh_is_mark(stop->mem_fd, mark);
}

static int find_watched(struct uh_stop *stop, uint64_t at, uint64_t *word)
{
	if (range_of(stop->resumed, stop->resumed_count, *word) && is_saved_pc(stop, at))
		return -EAGAIN;
	if (!range_of(stop->watched, stop->watched_count, *word))
		return 0;
	return moved(stop, *word) && is_saved_pc(stop, at) ? 0 : -EAGAIN;
}

static int move_saved_pc(struct uh_stop *stop, uint64_t at, uint64_t *word)
{
	uint64_t to = moved(stop, *word);

	if (!to || !is_saved_pc(stop, at))
		return 0;
	*word = to;
	return 1;
}

static int walk_stacks(struct uh_stop *stop, uint32_t count, word_look *look)
{
	int error = 0;

	for (uint32_t i = 0; i < count && !error; i++) {
		looked_at = tracees[i].tid;
		if (looked_at)
			error = walk_stack(stop, tracees[i].sp, look, INTERRUPTED_STACKS);
	}
	return error;
}

/* Who has read a return address, but not used it yet: unwinders above all. With the
 * hook gone theirs would end at a thunk, and the program with it (H39). */
static void restore_registers(struct uh_stop *stop, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		struct uh_registers registers;
		uint64_t *general = uh_general_registers(&registers);
		int changed = 0;

		if (!tracees[i].tid || uh_get_registers(tracees[i].tid, &registers) ||
		    range_of(stop->ours, stop->ours_count, uh_pc(&registers)))
			continue;
		looked_at = tracees[i].tid;
		for (uint32_t r = 0; r < UH_GENERAL_REGISTERS; r++)
			changed |= restore_return(stop, uh_sp(&registers) - 8, &general[r]);
		if (changed)
			uh_set_registers(tracees[i].tid, &registers);
	}
}

/* Before the sites: where the agent dies in between, thunks that nothing leads to do no
 * harm, but frames that the unwinder's hook no longer explains would. */
static int restore_returns(struct uh_stop *stop, uint32_t count)
{
	restore_registers(stop, count);
	return walk_stacks(stop, count, restore_return);
}

static int move_counters(struct uh_stop *stop, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		uint64_t to = tracees[i].tid ? moved(stop, tracees[i].pc) : 0;
		struct uh_registers registers;

		if (!to || uh_get_registers(tracees[i].tid, &registers))
			continue;
		uh_set_pc(&registers, to);
		uh_set_registers(tracees[i].tid, &registers);
	}
	return walk_stacks(stop, count, move_saved_pc);
}

static int attempt(struct uh_stop *stop)
{
	uint64_t deadline = uh_now() + stop->deadline_nanos;
	uint32_t count = 0;
	int error;

	uh_hurry(1);
	error = freeze(stop->pid, deadline, &count);
	if (!error)
		error = check_counters(stop, count);
	if (!error && (stop->watched_count || stop->resumed_count))
		error = walk_stacks(stop, count, find_watched);
	if (!error) {
		stop->pause.signed_frames = 0;
		if (stop->thunks)
			error = restore_returns(stop, count);
		if (!error)
			error = uh_write_sites(stop->mem_fd, stop->sites, stop->site_count,
					       stop->pause.signed_frames != 0);
		if (!error && stop->move_count)
			error = move_counters(stop, count);
	}
	thaw(stop->pid, count, &stop->pause);
	uh_hurry(0);
	if (count > stop->pause.threads)
		stop->pause.threads = count;
	return error;
}

static int run(void *argument)
{
	struct uh_stop *stop = argument;
	int error = 0;

	tracees = malloc(UH_MAX_THREADS * sizeof *tracees + UH_MAX_THREADS * sizeof *tids);
	tids = (pid_t *)(tracees + UH_MAX_THREADS);
	if (!tracees)
		return -ENOMEM;
	uh_touch(stop->mem_fd, stop->sites, stop->site_count);
	if (stop->thunks)
		uh_start_signer();
	for (uint32_t i = 0; i < stop->attempts; i++) {
		struct timespec breath = { 0, 200000 << (i < 6 ? i : 6) };

		error = attempt(stop);
		if (error != -EAGAIN && error != -ETIMEDOUT)
			break;
		stop->pause.retries++;
		nanosleep(&breath, 0);
	}
	uh_stop_signer();
	free(tracees);
	return error;
}

/* Stop all threads, write the sites, let them go. 0; -ETIMEDOUT: some thread
 * did not stop in time, nothing was changed; -EAGAIN: some thread stayed in a
 * forbidden range at every attempt, nothing was changed; -EPERM: somebody else
 * traces the process; -ESRCH: it is gone. */
UH_API int uh_stop_write(struct uh_stop *stop)
{
	return uh_run_as_tracer(run, stop);
}

/* host.h - what the agent's native helpers share.
 *
 * Everything here runs inside the agent while a target (or a thread of it) is
 * stopped, so that no target ever waits for the interpreter (H93). Functions
 * return 0 or a negative errno; nothing is allocated while a thread is stopped.
 */
#ifndef UH_HOST_H
#define UH_HOST_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define UH_API __attribute__((visibility("default")))

/* One changed span of code: at most 16 bytes. */
struct uh_site {
	uint64_t address;
	uint8_t length;
	uint8_t status; /* out: enum uh_site_status */
	uint8_t may_be_trapped; /* a trap, and bytes of both kinds, are ours as well */
	uint8_t explains_thunks; /* stays where signed return addresses had to */
	uint8_t pad[4];
	uint8_t expected[16];
	uint8_t wanted[16];
};

enum uh_site_status {
	UH_SITE_UNTOUCHED = 0,
	UH_SITE_WRITTEN = 1,
	UH_SITE_CONFLICT = 2, /* neither the expected bytes nor the wanted ones */
	UH_SITE_ALREADY = 3,  /* the wanted bytes were there */
	UH_SITE_FAILED = 4,   /* the kernel refused the write */
};

/* Addresses in which no thread may be while the sites are written. */
struct uh_range {
	uint64_t start; /* first forbidden program counter */
	uint64_t end;   /* first allowed one behind it */
};

struct uh_move {
	uint64_t from;
	uint64_t to;
};

struct uh_thread_pause {
	int32_t tid;
	uint32_t pad;
	uint64_t nanos;
};

struct uh_pause {
	uint32_t threads;
	uint32_t retries;
	uint32_t frames; /* return addresses set back */
	uint32_t count; /* rows in use */
	uint32_t capacity;
	uint32_t signed_frames; /* signed return addresses that had to stay thunks */
	struct uh_thread_pause *rows; /* the longest stop of each thread */
};

struct uh_stop {
	int32_t pid;
	int32_t mem_fd;
	uint64_t deadline_nanos; /* for one attempt */
	uint32_t attempts;
	uint32_t site_count;
	struct uh_site *sites; /* by rising address */
	uint32_t range_count;
	uint32_t pad;
	const struct uh_range *ranges;
	/* Set return addresses that are thunks back to the real ones: */
	uint64_t thunks; /* 0: do not */
	uint64_t thunk_span;
	const uint64_t *slots; /* a copy of the table, UF_SLOT_BYTES a slot */
	uint64_t slot_table; /* where the table itself is */
	const struct uh_range *ours; /* code whose threads keep their registers */
	const struct uh_range *stacks; /* writable memory, by rising address */
	uint32_t stack_count;
	uint32_t watched_count;
	/* Addresses that no stack may hold, since somebody might go on there: */
	const struct uh_range *watched;
	/* Who is at one of these goes on at the other, by rising `from`: */
	const struct uh_move *moves;
	uint32_t move_count;
	uint32_t resumed_count;
	/* Code that no interrupted thread may go on in, by what its signal frame says: */
	const struct uh_range *resumed;
	uint32_t ours_count;
	uint32_t padding;
	struct uh_pause pause; /* out */
};

/* The `trap` writer. */
struct uh_trap {
	int32_t pid;
	int32_t mem_fd;
	uint64_t deadline_nanos;
	uint32_t site_count;
	uint32_t pad;
	struct uh_site *sites;
	struct uh_range handler; /* where a thread is that has met a trap */
	struct uh_pause pause;   /* out */
};

struct uh_call {
	int64_t number;
	uint64_t args[6];
	int64_t result; /* out */
};

struct uh_remote {
	int32_t pid;
	int32_t tid;
	int32_t mem_fd;
	uint32_t call_count;
	struct uh_call *calls;
	uint64_t gadget;   /* `syscall; ret` in the target */
	uint64_t restorer; /* code that calls rt_sigreturn, or 0 */
	uint64_t pop_rax;  /* `pop %rax; ret`, where there is no restorer */
	uint64_t stack_low;  /* the thread's own stack: its stack pointer must be on it */
	uint64_t stack_high;
	uint64_t frame_top; /* or 0: the frame goes here, wherever the thread's stack is */
	uint64_t routine; /* uf_calls, once the annex is there, or 0 */
	uint64_t table;   /* of UF_CALLS_CAPACITY calls */
	uint32_t calls_done; /* out */
	uint32_t pad;
	uint64_t deadline_nanos;
	uint64_t pause_nanos; /* out */
};

/* A process with more is refused where all of them must be known. */
#define UH_MAX_THREADS 16384

uint64_t uh_now(void);
void uh_hurry(int on);
void uh_note_pause(struct uh_pause *pause, pid_t tid, uint64_t nanos);

/* What an architecture has to know of a thread's call before it is stopped. */
struct uh_call_note;

UH_API int uh_list_threads(int32_t pid, int32_t *tids, uint32_t capacity);
int uh_run_as_tracer(int (*run)(void *), void *argument);
int uh_seize(pid_t tid, unsigned long options);
int uh_await_stop(pid_t tid, uint64_t deadline, int *signal);
int uh_await_any(pid_t tid, uint64_t deadline, int *signal, int *in_call);
void uh_detach(pid_t tid, int signal);
int uh_interrupt(pid_t pid, pid_t tid, struct uh_call_note *note);
int uh_repair_interrupted_call(pid_t pid, pid_t tid, const struct uh_call_note *note);
/* How long threads that should have stopped by now may wait for a processor, all together. */
#define UH_LATE_NANOS 2000000000ull
void uh_release_late(pid_t pid, pid_t tid, const struct uh_call_note *note, uint64_t until);
int uh_touch(int mem_fd, const struct uh_site *sites, uint32_t count);
int uh_write_sites(int mem_fd, struct uh_site *sites, uint32_t count, int thunks_stay);
int uh_read_exact(int fd, void *data, size_t size, uint64_t address);
int uh_write_exact(int fd, const void *data, size_t size, uint64_t address);

#endif

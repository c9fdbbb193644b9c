/* remote_frame.h - the signal frame by which a borrowed thread finds home, per machine. */
#ifndef UH_REMOTE_FRAME_H
#define UH_REMOTE_FRAME_H

#include "arch_host.h"

struct uh_frame {
	struct uh_remote *remote;
	struct uh_registers original;
	struct uh_call_note note;
	uint64_t frame_at;
	uint64_t altstack_at; /* in it, what sigreturn makes of the alternate stack */
	uint64_t stack_at;    /* the stack pointer of the injected calls */
	uint64_t sigmask;
	int call; /* what is to be done about the interrupted call, in the machine's own terms */
};

/* Put the stopped thread's whole state (`original` is there already) into a frame below its
 * stack pointer; fills in the rest of *frame. 0; -ENOSPC: no room on its own stack, or it
 * has changed stacks; -EAGAIN: its state does not fit into a frame now. */
int uh_build_frame(struct uh_frame *frame);

/* Registers with which the thread makes a call, and then goes home by the frame. */
void uh_frame_call(const struct uh_frame *frame, struct uh_registers *now, int64_t number,
		   const uint64_t args[6]);
int64_t uh_call_result(const struct uh_registers *now);

/* The same for all calls of the table (target/, uf_calls). */
void uh_frame_routine(const struct uh_frame *frame, struct uh_registers *now);

/* Whether the frame alone brings the thread back as if nothing had been: not where
 * the kernel keeps the rest of an interrupted call to itself. */
int uh_returns_by_frame(const struct uh_frame *frame);

/* After the last call: set the thread back by its registers, so that it goes on with what
 * the stop interrupted. *signal: what is to be delivered at the detach. */
void uh_leave_frame(struct uh_frame *frame, int *signal);

#endif

/* params.h - the annex's structures as the C of the target runtime sees them. */
#ifndef UF_PARAMS_H
#define UF_PARAMS_H

#include <stdint.h>

struct uf_thread {
	uint64_t key;
	uint32_t tid;
	uint32_t busy;
	uint64_t head;
	uint64_t limit;
	uint64_t mask;
	uint64_t base;
	struct uf_ring *ring;
	uint64_t size;
};

struct uf_ring {
	uint64_t owner; /* tid | state << 32 */
	uint64_t lost;
	uint64_t shared_head;
	struct uf_thread *thread;
	uint32_t lost_words[8];
	uint64_t tail;
	uint64_t pad2[7];
};

struct uf_slot {
	uint64_t address;
	uint32_t word;
	uint32_t pad;
	uint64_t resume;
	uint64_t pad2;
};

struct uf_action {
	uint64_t handler;
	uint64_t flags;
	uint64_t restorer;
	uint64_t mask;
};

/* An instruction that holds a trap: a jump to `target`, or, where `return_to` is
 * not 0, a call of it. */
struct uf_trap {
	uint64_t address;
	uint64_t target;
	uint64_t return_to;
};

struct uf_traps {
	uint64_t installed;
	uint64_t count;
	struct uf_action ours;
	struct uf_action programs;
	struct uf_action answer;
	uint64_t handler_code[2];
	struct uf_trap entries[];
};

struct uf_params {
	uint64_t control;
	struct uf_thread *directory;
	struct uf_slot *slots;
	uint64_t thunks;
	int64_t tid_offset;
	struct uf_ring *rings;
	uint64_t ring_data;
	uint64_t ring_bytes;
	uint64_t ring_count;
	uint64_t fde_offset;
	struct uf_traps *traps;
};

extern const struct uf_params uf_params __attribute__((visibility("hidden")));

/* Called from assembly, or by the kernel. */
#define PROBE __attribute__((visibility("hidden"), used, noinline))

#endif

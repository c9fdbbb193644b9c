/* runtime.c - the slow paths of the probes, inside the target.
 *
 * Freestanding: no libc, no TLS, no static data, general registers only. It
 * runs on the traced thread's stack, at any instruction at which a traced
 * function can be entered, in signal handlers too: so no locks, and every
 * state that a nested probe can see is a valid one (H56, H57).
 */
#include <stddef.h>
#include <stdint.h>

#include "annex.h"
#include "arch.h"
#include "params.h"

_Static_assert(sizeof(struct uf_thread) == UF_THREAD_BYTES, "thread entry");
_Static_assert(offsetof(struct uf_thread, size) == UF_THREAD_SIZE, "thread entry");
_Static_assert(offsetof(struct uf_thread, ring) == UF_THREAD_HEADER, "thread entry");
_Static_assert(sizeof(struct uf_ring) == UF_RING_HEADER_BYTES, "ring header");
_Static_assert(offsetof(struct uf_ring, lost_words) == UF_RING_LOST_WORDS, "ring header");
_Static_assert(offsetof(struct uf_ring, tail) == UF_RING_TAIL, "ring header");
_Static_assert(sizeof(struct uf_slot) == UF_SLOT_BYTES, "slot");
_Static_assert(offsetof(struct uf_slot, resume) == UF_SLOT_RESUME, "slot");
_Static_assert(offsetof(struct uf_params, ring_count) == UF_PARAM_RING_COUNT, "parameters");

static inline uint64_t owner_word(uint32_t tid, uint32_t state)
{
	return tid | (uint64_t)state << 32;
}

static inline int swap_owner(struct uf_ring *ring, uint64_t from, uint64_t to)
{
	return __atomic_compare_exchange_n(&ring->owner, &from, to, 0, __ATOMIC_ACQ_REL,
					   __ATOMIC_RELAXED);
}

static void put(uint64_t base, uint64_t size, uint64_t position, uint64_t ticks, uint64_t word)
{
	volatile uint64_t *record = (volatile uint64_t *)(base + (position & (size - 1)));

	record[0] = ticks;
	__atomic_store_n(&record[1], word | !(position & size), __ATOMIC_RELEASE);
}

/* "From here on the records are of thread TID." */
static void announce(struct uf_thread *thread, uint32_t tid)
{
	uint64_t position = thread->head;

	thread->head = position + UF_RECORD_BYTES;
	put(thread->base, thread->size, position, uf_ticks(),
	    (uint64_t)tid << UF_KEY_SHIFT | UF_KIND_THREAD << UF_KIND_SHIFT);
}

/* Give the entry a ring that nobody uses: ring 0 is the shared one. */
static int take_ring(struct uf_thread *thread, uint32_t tid)
{
	for (uint64_t i = 1; i < uf_params.ring_count; i++) {
		struct uf_ring *ring = &uf_params.rings[i];
		uint64_t owner = __atomic_load_n(&ring->owner, __ATOMIC_ACQUIRE);
		uint32_t state = owner >> 32;

		if (state == UF_RING_USED || !swap_owner(ring, owner, owner_word(tid, UF_RING_USED)))
			continue;
		if (state == UF_RING_RETIRED && ring->thread && ring->thread != thread)
			ring->thread->tid = 0; /* its old entry must not match again */
		/* Drained before it was retired: the consumer's tail is its head. */
		thread->head = ring->tail;
		thread->limit = ring->tail + uf_params.ring_bytes - UF_RING_SLACK;
		thread->size = uf_params.ring_bytes;
		thread->mask = uf_params.ring_bytes - 1;
		thread->base = uf_params.ring_data + i * uf_params.ring_bytes;
		thread->ring = ring;
		ring->thread = thread;
		announce(thread, tid);
		__atomic_store_n(&thread->tid, tid, __ATOMIC_RELEASE);
		return 1;
	}
	return 0;
}

/* The thread pointer was seen before with another tid, or its ring was taken
 * from it: go on in the same ring if it is still to be had. */
static int renew(struct uf_thread *thread, uint32_t tid)
{
	struct uf_ring *ring = thread->ring;
	uint64_t owner;

	if (!ring)
		return take_ring(thread, tid);
	owner = __atomic_load_n(&ring->owner, __ATOMIC_ACQUIRE);
	if (ring->thread != thread || !swap_owner(ring, owner, owner_word(tid, UF_RING_USED)))
		return take_ring(thread, tid);
	if ((uint32_t)owner != tid)
		announce(thread, tid);
	__atomic_store_n(&thread->tid, tid, __ATOMIC_RELEASE);
	return 1;
}

/* The entry of the thread whose thread pointer is `key`, made where it is
 * missing; NULL where the thread must use the shared ring. */
PROBE struct uf_thread *uf_find_thread(uint64_t key)
{
	const int64_t tid_offset = uf_params.tid_offset;
	uint32_t index = (uint32_t)key * 0x9E3779B1u >> (32 - UF_DIRECTORY_BITS);
	struct uf_thread *thread = 0;
	uint32_t tid;
	int found;

	if (!key)
		return 0;
	for (uint32_t i = 0; i < UF_DIRECTORY_PROBES; i++) {
		uint64_t holder;

		thread = &uf_params.directory[(index + i) & ((1 << UF_DIRECTORY_BITS) - 1)];
		holder = __atomic_load_n(&thread->key, __ATOMIC_ACQUIRE);
		if (holder == 0)
			__atomic_compare_exchange_n(&thread->key, &holder, key, 0, __ATOMIC_ACQ_REL,
						    __ATOMIC_ACQUIRE);
		if (holder == key && tid_offset >= 0 && thread->tid &&
		    *uf_tid_word(key, tid_offset) == thread->tid)
			return thread;
		if (holder == key || holder == 0)
			goto mine;
	}
	return 0;
mine:
	tid = uf_gettid();
	/* A vfork child, or a thread made without TLS of its own: the word says
	 * another tid, and its owner may write at the same time (H58, H62). */
	if (tid_offset >= 0 && *uf_tid_word(key, tid_offset) != tid)
		return 0;
	if (thread->tid == tid)
		return thread;
	/* A signal handler's probe in the middle of the outer probe's registration
	 * must not register too: it uses the shared ring (H56). */
	if (thread->busy)
		return 0;
	thread->busy = 1;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	found = renew(thread, tid);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	thread->busy = 0;
	return found ? thread : 0;
}

/* A record whose word is `word` is the `index`th that the ring lost. Entries are lost
 * with their exits, in twos: every other index would never be used. */
static inline void note_lost(struct uf_ring *ring, uint64_t index, uint64_t word)
{
	ring->lost_words[index >> 1 & 7] = (uint32_t)word;
}

/* Look where the consumer is by now. 1: there is room; 0: the record is lost. */
PROBE int uf_refresh_room(struct uf_thread *thread, uint64_t word)
{
	struct uf_ring *ring = thread->ring;

	thread->limit = __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE) + thread->size - UF_RING_SLACK;
	if (thread->head < thread->limit)
		return 1;
	note_lost(ring, ring->lost++, word);
	return 0;
}

/* Records for a thread that has no ring: its number and they are reserved together. */
static void record_shared(uint64_t strand, uint64_t key, uint64_t word)
{
	struct uf_ring *ring = &uf_params.rings[0];
	const uint64_t size = uf_params.ring_bytes;
	const uint64_t length = (strand ? 3 : 2) * UF_RECORD_BYTES;
	uint64_t tail = __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE);
	uint64_t position, ticks;

	if (__atomic_load_n(&ring->shared_head, __ATOMIC_RELAXED) - tail > size - 16 * UF_RING_SLACK) {
		note_lost(ring, __atomic_fetch_add(&ring->lost, 1, __ATOMIC_RELAXED), word);
		return;
	}
	position = __atomic_fetch_add(&ring->shared_head, length, __ATOMIC_RELAXED);
	ticks = uf_ticks();
	put(uf_params.ring_data, size, position, ticks,
	    (uint64_t)uf_gettid() << UF_KEY_SHIFT | UF_KIND_THREAD << UF_KIND_SHIFT);
	if (strand)
		put(uf_params.ring_data, size, position + UF_RECORD_BYTES, ticks,
		    strand >> UF_STRAND_SHIFT << UF_KEY_SHIFT | UF_KIND_STRAND << UF_KIND_SHIFT);
	put(uf_params.ring_data, size, position + length - UF_RECORD_BYTES, ticks,
	    key << (UF_KEY_SHIFT - 3) | word);
}

PROBE void uf_record_shared(uint64_t return_slot, uint64_t word)
{
	record_shared(0, return_slot, word);
}

/* The same for a goroutine. */
PROBE void uf_record_shared_strand(uint64_t key, uint64_t word, uint64_t strand)
{
	record_shared(strand, key, word);
}

/* The byte offset of the thunk for (return address, id word), or -1 where the
 * table has no room near its place. `resume` is always the same for an id. */
PROBE int64_t uf_find_slot(uint64_t address, uint32_t word, uint64_t resume)
{
	uint32_t hash = (word * 0x9E3779B1u + (uint32_t)address) * 0x9E3779B1u;

	hash >>= 32 - UF_THUNK_BITS;
	for (uint32_t i = 0; i < UF_SLOT_PROBES; i++) {
		uint64_t index = (hash + i) & ((1 << UF_THUNK_BITS) - 1);
		struct uf_slot *slot = &uf_params.slots[index];
		uint32_t seen = __atomic_load_n(&slot->word, __ATOMIC_ACQUIRE);

		/* Claim by the word, publish by the address: a slot whose address is
		 * still 0 is another's in the making, and is passed over. */
		if (seen == 0 && __atomic_compare_exchange_n(&slot->word, &seen, word, 0,
							     __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
			slot->resume = resume;
			__atomic_store_n(&slot->address, address, __ATOMIC_RELEASE);
			return (int64_t)(index * UF_THUNK_BYTES);
		}
		if (seen == word && __atomic_load_n(&slot->address, __ATOMIC_ACQUIRE) == address)
			return (int64_t)(index * UF_THUNK_BYTES);
	}
	return -1;
}

/* drain.c - taking records out of the rings that the target shares with us. */
#include "host.h"

#include <time.h>

#include "../target/annex.h"
#include "arch_host.h"

struct ring {
	uint64_t owner;
	uint64_t lost;
	uint64_t shared_head;
	uint64_t thread;
	uint64_t lost_words[4];
	uint64_t tail;
	uint64_t taken;
	uint64_t holes;
	uint64_t pad2[5];
};

_Static_assert(sizeof(struct ring) == UF_RING_HEADER_BYTES, "ring header");

/* A run of records of one thread in the output. */
struct uh_run {
	int32_t tid;
	uint32_t records;
	uint64_t offset; /* in the output, bytes */
};

struct uh_drain {
	uint8_t *headers;
	uint8_t *data;
	uint64_t ring_bytes;
	uint32_t ring_count;
	uint32_t run_capacity;
	uint8_t *out;
	uint64_t out_bytes;
	struct uh_run *runs;
	int32_t *tids; /* by ring: the thread of the next record; kept between calls */
	uint64_t *hole_since; /* by ring: when its next record was first seen missing; kept */
	uint32_t next_ring; /* where to go on, so that no ring starves */
	uint32_t skip_holes; /* the target is gone: records never committed are passed over */
	uint64_t *calls; /* by function id: entries counted so far; [0] has all other ids */
	uint64_t call_capacity;
	uint64_t *counted; /* by ring: the records before this position are in `calls`; kept */
	/* out: */
	uint64_t used;
	uint32_t run_count;
	uint32_t more; /* the output was too small for all */
	uint64_t last_ticks;
};

/* A record that was reserved and never written, by a probe that a signal handler
 * left with longjmp, would hide all behind it: after this long it is given up. */
#define HOLE_NANOS 500000000ull

static int give_up_hole(struct uh_drain *d, uint32_t index)
{
	uint64_t now = uh_now();

	if (d->skip_holes)
		return 1;
	if (!d->hole_since[index]) {
		d->hole_since[index] = now;
		return 0;
	}
	return now - d->hole_since[index] > HOLE_NANOS;
}

/* Whether it only says whose the records behind it are. */
static int is_heading(uint64_t word)
{
	uint64_t kind = word >> UF_KIND_SHIFT & 7;

	return kind == UF_KIND_THREAD || kind == UF_KIND_STRAND;
}

/* One more entry of the record's function; exits have been counted with their entries. */
static inline void count_call(struct uh_drain *d, uint64_t word)
{
	uint64_t id = word >> UF_ID_SHIFT & UF_ID_MAX;

	d->calls[id < d->call_capacity ? id : 0] += (word >> UF_KIND_SHIFT & 7) != UF_KIND_EXIT;
}

static int committed(const struct uh_drain *d, const uint8_t *data, uint64_t position)
{
	const uint64_t *record = (const uint64_t *)(data + (position & (d->ring_bytes - 1)));
	uint64_t word = __atomic_load_n(&record[1], __ATOMIC_ACQUIRE);

	return word && (word & 1) == !(position & d->ring_bytes);
}

static void emit(struct uh_drain *d, struct uh_run *run, uint64_t ticks, uint64_t word)
{
	((uint64_t *)(d->out + d->used))[0] = ticks;
	((uint64_t *)(d->out + d->used))[1] = word & ~1ull;
	d->used += 16;
	run->records++;
}

static uint64_t strand_word(uint64_t strand)
{
	return strand << UF_KEY_SHIFT | UF_KIND_STRAND << UF_KIND_SHIFT;
}

/* A run begins and ends outside of any strand, so that runs can be put together. In
 * the ring each record of a strand stands behind the strand's; in the output only
 * changes are told. */
struct strand_state {
	uint64_t now;
	uint64_t ticks;
	uint64_t taken;
};

static void end_run(struct uh_drain *d, struct uh_run *run, struct strand_state *strand)
{
	if (!run || !strand->now)
		return;
	emit(d, run, strand->ticks, strand_word(0));
	strand->taken++;
	strand->now = 0;
}

/* Copy what ring `index` holds. */
static void drain_ring(struct uh_drain *d, uint32_t index)
{
	struct ring *ring = (struct ring *)(d->headers + index * UF_RING_HEADER_BYTES);
	const uint8_t *data = d->data + index * d->ring_bytes;
	const uint64_t size = d->ring_bytes;
	uint64_t position = ring->tail;
	const uint64_t limit = position + size;
	const uint64_t counted = d->counted[index];
	struct uh_run *run = 0;
	struct strand_state strand = {0, 0, 0};

	while (position < limit) {
		const uint64_t *record = (const uint64_t *)(data + (position & (size - 1)));
		uint64_t word = __atomic_load_n(&record[1], __ATOMIC_ACQUIRE);
		uint64_t step = 16, own = 0, room;

		/* A strand's record and the one behind it were reserved together. */
		if ((word & 1) == !(position & size) &&
		    (word >> UF_KIND_SHIFT & 7) == UF_KIND_STRAND && position + 16 < limit) {
			own = word >> UF_KEY_SHIFT;
			step = 32;
			record = (const uint64_t *)(data + ((position + 16) & (size - 1)));
			word = __atomic_load_n(&record[1], __ATOMIC_ACQUIRE);
		}
		if ((word & 1) != !((position + step - 16) & size)) {
			/* Not written yet: the end, unless there is one behind it. */
			if (position + step < limit && committed(d, data, position + step) &&
			    give_up_hole(d, index)) {
				ring->holes++;
				position += step;
				continue;
			}
			break;
		}
		d->hole_since[index] = 0;
		if ((word >> UF_KIND_SHIFT & 7) == UF_KIND_THREAD) {
			end_run(d, run, &strand);
			d->tids[index] = word >> UF_KEY_SHIFT;
			run = 0;
			position += step;
			continue;
		}
		if (!run || run->tid != d->tids[index]) {
			if (d->run_count == d->run_capacity) {
				d->more = 1;
				break;
			}
			run = &d->runs[d->run_count++];
			run->tid = d->tids[index];
			run->records = 0;
			run->offset = d->used;
		}
		/* Itself, its strand, and the strand's end. */
		room = 16 + 16 * (own != strand.now) + 16 * (own != 0);
		if (d->used + room > d->out_bytes) {
			end_run(d, run, &strand);
			if (!run->records) {
				d->run_count--;
				run = 0;
			}
			d->more = 1;
			break;
		}
		if (own != strand.now) {
			emit(d, run, record[0], strand_word(own));
			strand.now = own;
			strand.taken++;
		}
		if (position + step - 16 >= counted)
			count_call(d, word);
		emit(d, run, record[0], word);
		strand.ticks = record[0];
		strand.taken++;
		position += step;
	}
	end_run(d, run, &strand);
	/* Who is killed here has taken what it did not count, or the reverse: the agent
	 * after it believes the counts. */
	ring->taken += strand.taken;
	if (position > counted)
		d->counted[index] = position;
	__atomic_store_n(&ring->tail, position, __ATOMIC_RELEASE);
}

/* Take what the rings hold, as far as the output goes. */
UH_API int uh_drain_rings(struct uh_drain *d)
{
	d->used = 0;
	d->run_count = 0;
	d->more = 0;
	d->last_ticks = uh_ticks(); /* all records before this moment are taken, if nothing is left */
	for (uint32_t i = 0; i < d->ring_count && !d->more; i++) {
		uint32_t index = (d->next_ring + i) % d->ring_count;
		struct ring *ring = (struct ring *)(d->headers + index * UF_RING_HEADER_BYTES);

		if (index && !ring->owner)
			continue;
		drain_ring(d, index);
		if (d->more)
			d->next_ring = index;
	}
	return 0;
}

/* Count what rings hold that nobody reads, and leave it there. */
UH_API int uh_count_rings(struct uh_drain *d)
{
	const uint64_t size = d->ring_bytes;

	for (uint32_t index = 0; index < d->ring_count; index++) {
		const struct ring *ring =
			(const struct ring *)(d->headers + index * UF_RING_HEADER_BYTES);
		const uint8_t *data = d->data + index * size;
		uint64_t position = d->counted[index];

		if (index && !ring->owner)
			continue;
		if (position < ring->tail)
			position = ring->tail;
		for (; position < ring->tail + size; position += 16) {
			const uint64_t *record = (const uint64_t *)(data + (position & (size - 1)));
			uint64_t word = __atomic_load_n(&record[1], __ATOMIC_ACQUIRE);

			/* What is behind a record in the making is counted when it is taken. */
			if ((word & 1) != !(position & size))
				break;
			if (!is_heading(word))
				count_call(d, word);
		}
		d->counted[index] = position;
	}
	return 0;
}

/* A dead thread's drained ring may go to another thread: 1 if it was given up. */
UH_API int uh_retire_ring(uint8_t *headers, uint32_t index, int32_t tid)
{
	struct ring *ring = (struct ring *)(headers + index * UF_RING_HEADER_BYTES);
	uint64_t used = (uint32_t)tid | (uint64_t)UF_RING_USED << 32;

	return __atomic_compare_exchange_n(&ring->owner, &used,
					   (uint32_t)tid | (uint64_t)UF_RING_RETIRED << 32, 0,
					   __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

struct uh_anchor {
	uint64_t ticks, monotonic, realtime;
};

/* One moment on three clocks: the tightest of some tries. */
UH_API int uh_anchor(struct uh_anchor *anchor)
{
	uint64_t best = ~0ull;

	for (int i = 0; i < 16; i++) {
		struct timespec monotonic, realtime;
		uint64_t before = uh_ticks(), after;

		clock_gettime(CLOCK_MONOTONIC, &monotonic);
		after = uh_ticks();
		clock_gettime(CLOCK_REALTIME, &realtime);
		if (after - before >= best)
			continue;
		best = after - before;
		anchor->ticks = before + (after - before) / 2;
		anchor->monotonic = monotonic.tv_sec * 1000000000ull + monotonic.tv_nsec;
		anchor->realtime = realtime.tv_sec * 1000000000ull + realtime.tv_nsec;
	}
	return 0;
}

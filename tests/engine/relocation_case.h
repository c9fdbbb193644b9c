/* relocation_case.h - what the two runners of relocation tests share.
 *
 * A case is a window of instructions at its own address and the same one moved.
 * Both are run in one world, from one state; what they leave is compared here.
 *
 *   low memory   [LOW_START, LOW_END): the first half of an arena of ARENA bytes,
 *                mapped again and again, so that whatever a register points to can
 *                be compared and put back quickly
 *   stack        [STACK_START, STACK_END): likewise the second half
 *   program      [low, high) around the base: zeros that cannot be executed; the
 *                text is full of int3, so that a window ends wherever it is left,
 *                and can be written only through a second mapping
 *   references   noise, made anew for each case, around each address that an
 *                instruction of the window names relative to itself
 */
#ifndef RELOCATION_CASE_H
#define RELOCATION_CASE_H

#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
	HALF = 0x4000,
	ARENA = 2 * HALF,
	LOW_START = 0x10000,
	LOW_END = 0x2000000,
	STACK_START = 0x3000000,
	STACK_END = 0x3100000,
	WINDOW = 4,
	BEFORE = 64, /* bytes of noise before and behind a reference */
	AROUND = 192,
	VECTORS = 8192,
	INT3 = 0xcc,
	RSP = 4, /* the order of encodings: rax rcx rdx rbx rsp rbp rsi rdi r8... */
	FLAGS = 0x40cd5, /* AC OF DF SF ZF AF PF CF */
	TRAP_FLAG = 0x100,
};

struct state {
	uint64_t gpr[16], flags, fs, gs, seed;
};

struct text_range {
	uint64_t start, size;
};

struct world {
	uint64_t low, high;
	uint32_t ranges, states;
};

/* ISOLATED: both runs in processes of their own, in which nothing ran before. */
enum { ISOLATED = 1 };

struct case_ {
	uint64_t address, moved_to;
	uint64_t references[WINDOW], targets[WINDOW];
	uint32_t seed;
	uint16_t state;
	uint8_t length, moved_length, count, flags, calls;
	uint8_t starts[WINDOW + 1], moved_starts[WINDOW + 1];
	uint8_t code[60], moved[167];
} __attribute__((packed));

enum verdict { NOT_RUN, SAME, SAME_FAULT, CALL_FAULT, UNKNOWN, ENDLESS, DIFFERENT };

struct result {
	uint64_t pc[2], fault[2], values[2], memory_at;
	uint32_t kind[2], detail[2], flags[2];
	uint16_t gprs, parts;
	uint8_t verdict, filler[3];
};

/* STEPPED: by the trap flag; IMPRECISE: the emulator stopped somewhere behind the fault. */
enum { KIND_TRAP = 1, KIND_ILLEGAL, KIND_ENDLESS, KIND_STEPPED, KIND_IMPRECISE, KIND_FAULT };
enum { PART_PC = 1, PART_KIND = 2, PART_FLAGS = 4, PART_BASES = 8, PART_VECTORS = 16,
       PART_ARENA = 32, PART_REFERENCES = 64, PART_FAULT = 128 };

struct outcome {
	uint32_t kind, detail;
	uint64_t fault, pc, gpr[16], flags, bases[2];
	uint32_t vector_bytes;
	uint8_t vectors[VECTORS];
	uint8_t arena[ARENA];
	uint8_t references[WINDOW][AROUND];
};

/* A write that is undone when the case is over. */
struct undo {
	uint64_t at;
	uint32_t size;
	uint8_t before[AROUND];
};

static struct world the_world;
static struct text_range *the_text;
static uint8_t **the_writable; /* by range: the same memory */
static struct state *the_states;
static uint8_t *the_arena, pristine[ARENA];
static struct outcome *outcomes; /* shared with children: of the original, of the copy */
static struct undo undos[3 * WINDOW + 4];
static unsigned undo_count;

static uint64_t next_random(uint64_t *seed)
{
	uint64_t z = *seed += 0x9e3779b97f4a7c15ull; /* splitmix64 */

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

static int in_text(uint64_t at)
{
	for (uint32_t i = 0; i < the_world.ranges; i++)
		if (at - the_text[i].start < the_text[i].size)
			return 1;
	return 0;
}

/* A pointer to code, or to data. */
static uint64_t random_pointer(uint64_t bits)
{
	const struct text_range *text = &the_text[bits % the_world.ranges];

	if (bits >> 63)
		return text->start + (bits >> 8 & 0xffffffff) % text->size;
	return 0x200000 + (bits % 0x200000 & ~7ull);
}

/* A number that means something: a pointer, a small one, or none. */
static uint64_t random_word(uint64_t *seed)
{
	uint64_t bits = next_random(seed), more = next_random(seed);

	switch (bits % 10) {
	case 0: case 1: case 2: case 3: case 4:
		return random_pointer(more);
	case 5:
		return more % 256;
	default:
		return more & ~(uint64_t)TRAP_FLAG;
	}
}

static void must(int condition, const char *what)
{
	if (condition)
		return;
	perror(what);
	exit(3);
}

static void read_all(void *to, size_t size)
{
	for (uint8_t *at = to; size;) {
		ssize_t got = read(0, at, size);

		if (got <= 0)
			exit(got ? 3 : 0);
		at += got;
		size -= (size_t)got;
	}
}

static void write_all(const void *from, size_t size)
{
	for (const uint8_t *at = from; size;) {
		ssize_t put = write(1, at, size);

		must(put > 0, "write");
		at += put;
		size -= (size_t)put;
	}
}

static void *map_part(uint64_t at, size_t size, int protection, int flags, int fd, off_t from)
{
	void *got =
		mmap((void *)at, size, protection, flags | (at ? MAP_FIXED_NOREPLACE : 0), fd, from);

	must(got != MAP_FAILED && (!at || got == (void *)at), "mmap");
	return got;
}

static void *map_at(uint64_t at, size_t size, int protection, int flags, int fd)
{
	return map_part(at, size, protection, flags, fd, 0);
}

static void make_world(void)
{
	uint64_t seed = 20240611;
	int arena = memfd_create("arena", MFD_CLOEXEC);

	read_all(&the_world, sizeof the_world);
	the_text = calloc(the_world.ranges, sizeof *the_text);
	the_states = calloc(the_world.states, sizeof *the_states);
	the_writable = calloc(the_world.ranges, sizeof *the_writable);
	must(the_text && the_states && the_writable, "calloc");
	read_all(the_text, the_world.ranges * sizeof *the_text);
	read_all(the_states, the_world.states * sizeof *the_states);

	must(!ftruncate(arena, ARENA), "ftruncate");
	the_arena = map_at(0, ARENA, PROT_READ | PROT_WRITE, MAP_SHARED, arena);
	for (uint64_t at = LOW_START; at < LOW_END; at += HALF)
		map_part(at, HALF, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, arena, 0);
	for (uint64_t at = STACK_START; at < STACK_END; at += HALF)
		map_part(at, HALF, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, arena, HALF);
	for (size_t i = 0; i < ARENA; i += 8) {
		uint64_t word = random_word(&seed);

		memcpy(pristine + i, &word, 8);
	}

	outcomes = map_at(0, 2 * sizeof *outcomes, PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1);
	map_at(the_world.low, the_world.high - the_world.low, PROT_READ | PROT_WRITE,
	       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	for (uint32_t i = 0; i < the_world.ranges; i++) {
		const struct text_range *text = &the_text[i];
		int memory = memfd_create("text", MFD_CLOEXEC);
		void *at = (void *)text->start;

		must(!ftruncate(memory, (off_t)text->size), "ftruncate");
		the_writable[i] = map_at(0, text->size, PROT_READ | PROT_WRITE, MAP_SHARED, memory);
		memset(the_writable[i], INT3, text->size);
		must(mmap(at, text->size, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, memory, 0) ==
			     at,
		     "mmap text");
		close(memory);
	}
	close(arena);
}

/* Ranges are whole pages, so no write of a piece within a page is in two. */
static uint8_t *writable(uint64_t at)
{
	for (uint32_t i = 0; i < the_world.ranges; i++)
		if (at - the_text[i].start < the_text[i].size)
			return the_writable[i] + (at - the_text[i].start);
	return (uint8_t *)at;
}

static void put(uint64_t at, const uint8_t *bytes, size_t size)
{
	while (size) {
		size_t piece = 0x1000 - (at & 0xfff);

		piece = piece < size ? piece : size;
		memcpy(writable(at), bytes, piece);
		at += piece, bytes += piece, size -= piece;
	}
}

static int is_reference(uint64_t at)
{
	return at && at >= the_world.low + AROUND && at + AROUND < the_world.high;
}

static void lay(uint64_t at, const void *bytes, unsigned size, int first)
{
	struct undo *undo = &undos[undo_count];

	if (first) {
		undo->at = at;
		undo->size = size;
		memcpy(undo->before, (void *)at, size);
		undo_count++;
	}
	put(at, bytes, size);
}

/* Memory as it is when a run of the case begins. */
static void lay_out(const struct case_ *one, int first)
{
	static const uint8_t trap = INT3;
	uint64_t seed = one->seed, noise[AROUND / 8];

	if (first)
		undo_count = 0;
	memcpy(the_arena, pristine, ARENA);
	for (int i = 0; i < WINDOW; i++) {
		if (!is_reference(one->references[i]))
			continue;
		for (int k = 0; k < AROUND / 8; k++)
			noise[k] = next_random(&seed);
		/* What a jump through it can reach, and nowhere else. */
		noise[BEFORE / 8] = random_pointer(noise[0]);
		lay(one->references[i] - BEFORE, noise, AROUND, first);
	}
	for (int i = 0; i < WINDOW; i++)
		if (in_text(one->targets[i]))
			lay(one->targets[i], &trap, 1, first);
	if (in_text(one->address + one->length))
		lay(one->address + one->length, &trap, 1, first);
	lay(one->address, one->code, one->length, first);
	lay(one->moved_to, one->moved, one->moved_length, first);
}

static void clear_up(void)
{
	while (undo_count) {
		const struct undo *undo = &undos[--undo_count];

		put(undo->at, undo->before, undo->size);
	}
}

static void keep_memory(const struct case_ *one, struct outcome *outcome)
{
	memcpy(outcome->arena, the_arena, ARENA);
	for (int i = 0; i < WINDOW; i++)
		if (is_reference(one->references[i]))
			memcpy(outcome->references[i], (void *)(one->references[i] - BEFORE), AROUND);
}

/* Which instruction of the window an address lies in; -1 for none. */
static int instruction_at(uint64_t pc, uint64_t start, const uint8_t *starts, int count)
{
	for (int i = 0; i < count; i++)
		if (pc - start >= starts[i] && pc - start < starts[i + 1])
			return i;
	return -1;
}

/* In the window both stand for: which instruction, and whether at its start. */
static int same_place(const struct case_ *one, uint64_t pc, uint64_t moved_pc, int *at, int *inside)
{
	*at = instruction_at(pc, one->address, one->starts, one->count);
	*inside = 0;
	if (pc == moved_pc)
		return 1;
	int moved_at = instruction_at(moved_pc, one->moved_to, one->moved_starts, one->count);
	if (*at < 0 || moved_at != *at)
		return 0;
	*inside = moved_pc - one->moved_to != one->moved_starts[*at];
	return 1;
}

/* Not canonical, or what faulted; the emulator tells 52 bits of that. */
static int is_bad_stack(uint64_t pushed, uint64_t fault)
{
	uint64_t high = pushed >> 47;

	return (high && high != 0x1ffff) || ((fault - pushed) & ((1ull << 52) - 1)) < 8;
}

/* A call is moved as a push and a jump: that nothing can be called is found out
 * behind the push, and where the stack is bad too, that comes first. */
static int is_call_fault(const struct case_ *one, int at, const struct result *result,
			 struct outcome *a, struct outcome *b)
{
	uint64_t pushed = b->gpr[RSP];
	uint16_t differing = PART_ARENA | PART_FAULT;

	if (is_bad_stack(pushed, b->fault))
		differing |= PART_KIND;
	if (at < 0 || !(one->calls >> at & 1) || pushed + 8 != a->gpr[RSP])
		return 0;
	if (a->kind < KIND_FAULT || b->kind < KIND_FAULT)
		return 0;
	if ((result->gprs & ~(1 << RSP)) || (result->parts & ~differing))
		return 0;
	for (uint64_t at = pushed; at < pushed + 8; at++) {
		uint64_t part = at >= STACK_START && at < STACK_END ? HALF : 0;

		b->arena[at % HALF + part] = a->arena[at % HALF + part];
	}
	return !memcmp(a->arena, b->arena, ARENA);
}

static void note_memory(struct result *result, const uint8_t *a, const uint8_t *b, size_t size,
			uint64_t at, uint16_t part)
{
	if (!memcmp(a, b, size))
		return;
	while (*a == *b)
		a++, b++, at++;
	result->parts |= part;
	result->memory_at = at;
}

static void judge(const struct case_ *one, struct outcome *a, struct outcome *b,
		  struct result *result)
{
	int at, inside;

	memset(result, 0, sizeof *result);
	for (int i = 0; i < 2; i++) {
		const struct outcome *outcome = i ? b : a;

		result->pc[i] = outcome->pc;
		result->fault[i] = outcome->fault;
		result->kind[i] = outcome->kind;
		result->detail[i] = outcome->detail;
		result->flags[i] = (uint32_t)outcome->flags;
	}
	if (a->kind == KIND_ENDLESS || b->kind == KIND_ENDLESS) {
		result->verdict = a->kind == b->kind ? ENDLESS : DIFFERENT;
		result->parts = PART_KIND;
		return;
	}
	if (a->kind == KIND_STEPPED || b->kind == KIND_STEPPED || a->kind == KIND_IMPRECISE) {
		result->verdict = UNKNOWN;
		return;
	}
	if (a->kind != b->kind || a->detail != b->detail)
		result->parts |= PART_KIND;
	if (a->fault != b->fault)
		result->parts |= PART_FAULT;
	if (!same_place(one, a->pc, b->pc, &at, &inside))
		result->parts |= PART_PC;
	for (int i = 15; i >= 0; i--)
		if (a->gpr[i] != b->gpr[i]) {
			result->gprs |= (uint16_t)(1 << i);
			result->values[0] = a->gpr[i];
			result->values[1] = b->gpr[i];
		}
	if ((a->flags ^ b->flags) & FLAGS)
		result->parts |= PART_FLAGS;
	if (a->bases[0] != b->bases[0] || a->bases[1] != b->bases[1])
		result->parts |= PART_BASES;
	note_memory(result, a->vectors, b->vectors, a->vector_bytes, 0, PART_VECTORS);
	note_memory(result, a->arena, b->arena, ARENA, 0, PART_ARENA);
	for (int i = 0; i < WINDOW; i++)
		if (is_reference(one->references[i]))
			note_memory(result, a->references[i], b->references[i], AROUND,
				    one->references[i] - BEFORE, PART_REFERENCES);
	if (inside && is_call_fault(one, at, result, a, b))
		result->verdict = CALL_FAULT;
	else if (result->parts || result->gprs || inside)
		result->verdict = DIFFERENT;
	else if (a->kind == KIND_ILLEGAL)
		result->verdict = UNKNOWN;
	else
		result->verdict = a->kind == KIND_TRAP ? SAME : SAME_FAULT;
}

#endif

/* SPDX-License-Identifier: Apache-2.0
 *
 * Every kind of XRay sled as clang makes them: entries with and without a loop
 * back to them, several exits, tail calls (direct, indirect, conditional, in a
 * chain), logged arguments, custom and typed events.
 *
 *   runtime 1, runtime 0 -> runtime done N   XRay's own runtime patches, unpatches
 *
 * What clang 14's runtime breaks rests from the first `runtime` on: it loses the
 * flags at tail sleds (tail_maybe), and the code of its events pushes onto live
 * data in the red zone (event_redzone). It also takes a wrong buffer where the
 * moves of a typed event's arguments are in each other's way (event_moves).
 */
#include "harness.h"

#if !defined(__clang__)
#error "only clang has XRay"
#endif

typedef unsigned long word;

/* Kept out of the map of sleds, for what is called from inside of them. */
#define UNTRACED __attribute__((noinline, used, xray_never_instrument))
/* Compiled for size, a tail call at the end of a branch becomes `jcc function`. */
#define SMALL __attribute__((minsize))

/* Without XRay's runtime (xray-bare) the calls in the events end here. */
UNTRACED __attribute__((weak)) void __xray_CustomEvent(void)
{
}
UNTRACED __attribute__((weak)) void __xray_TypedEvent(void)
{
}
__attribute__((weak)) int __xray_patch(void);
__attribute__((weak)) int __xray_unpatch(void);

static int fragile = 1; /* whether functions that XRay's runtime breaks run too */

/* --- entries and exits --- */
COUNTER(leaf);
COUNTER(exits);
COUNTER(exits_void);
COUNTER(logged);
COUNTER(always);
COUNTER(loop_head);
COUNTER_NAMED(calls_loop_rounds, "loop_rounds");

TRACED word leaf(word x)
{
	KEEP();
	return x * 37 + 2;
}

/* Each case calls, so that none can be merged into another's return. */
TRACED word exits(word x)
{
	if (x % 4 == 0) {
		KEEP();
		return 11;
	}
	if (x % 4 == 1) {
		word got = leaf(x);
		KEEP();
		return got + 1;
	}
	if (x % 4 == 2) {
		word got = leaf(x + 1);
		KEEP();
		return got ^ 1;
	}
	word got = leaf(leaf(x));
	KEEP();
	return got;
}

TRACED void exits_void(word x, word *result)
{
	if (x & 1)
		return;
	*result = leaf(x);
	KEEP();
}

/* Without the first attribute clang ignores the second. */
__attribute__((xray_always_instrument, xray_log_args(1))) TRACED word logged(word x)
{
	KEEP();
	return x + 41;
}

__attribute__((xray_always_instrument)) TRACED word always(word x)
{
	KEEP();
	return x + 43;
}

/* The loop goes back to the function's first byte, through its entry sled. */
SMALL TRACED word loop_head(word rounds, volatile word *place)
{
	do
		*place += 3;
	while (--rounds);
	return 0;
}

static void check_calls(word x)
{
	word r = x % 4;
	COUNT(leaf, r == 0 ? 0 : r == 3 ? 2 : 1);
	CHECK("exits", CALL(exits, x),
	      r == 0 ? 11 : r == 1 ? x * 37 + 3 : r == 2 ? (x * 37 + 39) ^ 1 : (x * 37 + 2) * 37 + 2);
	word result = 5;
	COUNT(leaf, !(x & 1));
	CALL(exits_void, x, &result);
	CHECK("exits_void", result, x & 1 ? 5 : x * 37 + 2);
	CHECK("logged", CALL(logged, x), x + 41);
	CHECK("always", CALL(always, x), x + 43);
	word rounds = x % 5 + 1;
	volatile word place = x;
	COUNT(loop_rounds, rounds);
	CALL(loop_head, rounds, &place);
	CHECK("loop_head", place, x + 3 * rounds);
}

/* --- tail calls --- */
COUNTER(tail_last);
COUNTER(tail_middle);
COUNTER(tail_first);
COUNTER(tail_pointer);
COUNTER(tail_either);
COUNTER(tail_maybe);
COUNTER(tail_even);
COUNTER(tail_odd);

#define TAIL_CALL __attribute__((musttail)) return

TRACED word tail_last(word x, word y)
{
	KEEP();
	return x * 3 + y;
}

TRACED word tail_middle(word x, word y)
{
	KEEP();
	TAIL_CALL tail_last(x + 1, y + 2);
}

TRACED word tail_first(word x, word y)
{
	KEEP();
	TAIL_CALL tail_middle(x + 10, y + 20);
}

TRACED word tail_pointer(word (*function)(word, word), word x)
{
	KEEP();
	return function(x, 4);
}

/* A tail call on one way and a return on the other. */
TRACED word tail_either(word x, word y)
{
	if (x & 1)
		return tail_last(x, y + 1);
	KEEP();
	return x + y;
}

/* One sled in front of a conditional jump: both ways go through it, and the
 * flags are live there. */
SMALL TRACED word tail_maybe(word x, word y)
{
	if (x & 1)
		return tail_last(x, y);
	return x;
}

word tail_odd(word n, word sum);
TRACED word tail_even(word n, word sum)
{
	if (n == 0)
		return sum;
	TAIL_CALL tail_odd(n - 1, sum + 1);
}
TRACED word tail_odd(word n, word sum)
{
	if (n == 0)
		return sum + 1000;
	TAIL_CALL tail_even(n - 1, sum + 2);
}

static void check_tails(word x)
{
	COUNT(tail_middle, 1);
	COUNT(tail_last, 1);
	CHECK("tail_first", CALL(tail_first, x, 5), x * 3 + 60);
	COUNT(tail_last, 1);
	CHECK("tail_pointer", CALL(tail_pointer, tail_last, x), x * 3 + 4);
	COUNT(tail_last, x & 1);
	CHECK("tail_either", CALL(tail_either, x, 6), x & 1 ? x * 3 + 7 : x + 6);
	if (__atomic_load_n(&fragile, __ATOMIC_RELAXED)) {
		COUNT(tail_last, x & 1);
		CHECK("tail_maybe", CALL(tail_maybe, x, 8), x & 1 ? x * 3 + 8 : x);
	}
	word depth = x % 256 == 128 ? 100001 : x % 8;
	COUNT(tail_even, depth / 2 + 1);
	COUNT(tail_odd, (depth + 1) / 2);
	CHECK("tail_even", tail_even(depth, 0), depth / 2 * 3 + (depth & 1 ? 1001 : 0));
}

/* --- events --- */
COUNTER(event_custom);
COUNTER(event_typed);
COUNTER(event_moves);
COUNTER(event_live);
COUNTER(event_redzone);
COUNTER(event_both);
COUNTER_NAMED(calls_custom_events, "custom_events");
COUNTER_NAMED(calls_typed_events, "typed_events");
#define CUSTOM(data, size) (COUNT(custom_events, 1), __xray_customevent(data, size))
#define TYPED(type, data, size) (COUNT(typed_events, 1), __xray_typedevent(type, data, size))

static const char label[] = "an event";

/* The counters are the callers': these keep their registers to themselves. */
TRACED word event_custom(const char *data, word size)
{
	__xray_customevent(data, size);
	KEEP();
	return size + 1;
}

TRACED word event_typed(word type, const char *data, word size)
{
	__xray_typedevent(type, data, size);
	KEEP();
	return type + size;
}

/* The arguments of the event are those of the function in another order. */
TRACED word event_moves(const char *data, word size, word type)
{
	__xray_typedevent(type, data, size);
	KEEP();
	return type - size;
}

/* All registers that a call may destroy are live across the events. */
TRACED double event_live(word a, word b, word c, word d, word e, word f, double g, double h)
{
	__xray_customevent(label, sizeof label);
	word sum = a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f;
	double result = g + 2 * h;
	__xray_typedevent(9, label, 2);
	return result + (double)sum;
}

/* A leaf whose data lies below the stack pointer while the event happens. */
TRACED word event_redzone(word x)
{
	volatile word words[12];
	for (word i = 0; i < 12; i++)
		words[i] = x + i;
	__xray_customevent(label, sizeof label);
	word sum = 0;
	for (word i = 0; i < 12; i++)
		sum += words[i];
	return sum;
}

TRACED word event_both(word x)
{
	word sum = 0;
	for (word i = 0; i < x % 3 + 1; i++) {
		CUSTOM(label, i);
		sum += leaf(i);
		TYPED(7, label, i);
	}
	KEEP();
	return sum;
}

static void check_events(word x)
{
	word size = x & 7, n = x % 3 + 1;
	double d = (double)(x & 0xffff);
	COUNT(custom_events, 2);
	COUNT(typed_events, 3);
	CHECK("event_custom", CALL(event_custom, label, size), size + 1);
	CHECK("event_typed", CALL(event_typed, x & 0xfff, label, size), (x & 0xfff) + size);
	CHECK("event_moves", CALL(event_moves, label, size, 100), 100 - size);
	CHECK_FP("event_live", CALL(event_live, x & 0xffff, 1, 2, 3, 4, 5, d, 0.5), d + 1 + d + 70);
	if (__atomic_load_n(&fragile, __ATOMIC_RELAXED)) {
		COUNT(custom_events, 1);
		CHECK("event_redzone", CALL(event_redzone, x), 12 * x + 66);
	}
	COUNT(leaf, n);
	CHECK("event_both", CALL(event_both, x), 37 * (n * (n - 1) / 2) + 2 * n);
}

static void worker(long index)
{
	for (word x = (word)index << 20; harness_running(); x++) {
		check_calls(x);
		check_tails(x);
		check_events(x);
		harness_iterated();
	}
}

static void burst(long n)
{
	for (word i = 0; i < (word)n; i++)
		CHECK("leaf", CALL(leaf, i), i * 37 + 2);
	harness_reply("burst done %ld", n);
}

static void runtime(long patched)
{
	int (*function)(void) = patched ? __xray_patch : __xray_unpatch;
	REQUIRE("XRay's runtime", function != NULL);
	harness_set_pause(1);
	__atomic_store_n(&fragile, 0, __ATOMIC_RELAXED);
	CHECK("XRay's runtime", function(), 1); /* XRayPatchingStatus::SUCCESS */
	harness_set_pause(0);
	harness_reply("runtime done %ld", patched);
}

int main(void)
{
	static const harness_command commands[] = { { "burst", burst }, { "runtime", runtime }, { NULL, NULL } };
	harness_spawn(3, worker);
	return harness_main(commands, NULL);
}

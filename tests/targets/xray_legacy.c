/* SPDX-License-Identifier: Apache-2.0
 *
 * Calls the functions of xray_legacy.S, whose XRay sleds are in maps of the
 * older versions, and checks their results.
 */
#include "harness.h"

typedef unsigned long word;

/* The functions of one argument: name and what they return for x. */
#define UNARY(F) \
	F(legacy_leaf, x * 41 + 3) \
	F(legacy_exits, x + (x & 3)) \
	F(legacy_tail, x * 41 + 44) \
	F(legacy_maybe, x & 1 ? x * 41 + 3 : x) \
	F(legacy_logged, x + 5) \
	F(legacy_custom0, x + 6) \
	F(legacy_custom1, x + 7) \
	F(legacy_typed, x + 8) \
	F(legacy_live, x * 25 + 308) \
	F(legacy_call_registers, x * 11 + 51) \
	F(legacy_call_results, x * 4 + 6)
#define DECLARE(name, result) \
	word name(word); \
	COUNTER(name);
UNARY(DECLARE)
word legacy_loop(word rounds, word value, word sum);
COUNTER(leaf);
COUNTER(legacy_loop);
COUNTER(legacy_registers);
COUNTER(legacy_results);
COUNTER_NAMED(calls_loop_rounds, "loop_rounds");
COUNTER_NAMED(calls_custom_events, "custom_events");
COUNTER_NAMED(calls_typed_events, "typed_events");

TRACED word leaf(word x)
{
	KEEP();
	return x * 43 + 7;
}

static void worker(long index)
{
	for (word x = (word)index << 20; harness_running(); x++) {
		word rounds = x % 5 + 1;
		COUNT(legacy_leaf, 1 + (x & 1)); /* by legacy_tail and legacy_maybe */
		COUNT(legacy_registers, 1);
		COUNT(legacy_results, 1);
		COUNT(custom_events, 3);
		COUNT(typed_events, 2);
		COUNT(loop_rounds, rounds);
#define CHECK_UNARY(name, result) CHECK(#name, CALL(name, x), result);
		UNARY(CHECK_UNARY)
		CHECK("legacy_loop", CALL(legacy_loop, rounds, x, 0), rounds * x);
		harness_iterated();
	}
}

static void burst(long n)
{
	for (word i = 0; i < (word)n; i++)
		CHECK("leaf", CALL(leaf, i), i * 43 + 7);
	harness_reply("burst done %ld", n);
}

int main(void)
{
	static const harness_command commands[] = { { "burst", burst }, { NULL, NULL } };
	harness_spawn(3, worker);
	return harness_main(commands, NULL);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * The tree of kinds_tree.c, called by threads that check its results (as many as the
 * argument says, or 3), and by main:
 *
 *   tree N -> tree done N     main called kind_root(0) to kind_root(N - 1)
 */
#include "harness.h"
#include "kinds.h"

COUNTER(kind_root);
COUNTER_NAMED(calls_kind_leaf, "calls_leaf");

static word leaf(word x)
{
	return x * 13 + 7;
}

static word exits(word x)
{
	word r = x % 4;
	return r == 0 ? 5 : r == 1 ? leaf(x) + 1 : r == 2 ? leaf(x + 1) ^ 3 : leaf(leaf(x));
}

static void check(word x)
{
	word even = x & 1 ? x + 1 : x;
	word sum = exits(x) + exits(x + 1) + exits(x + 2) + exits(x + 3);
	sum += 120 + (3 * 2 + 5) * 2;
	sum += 13 * 6 + 7 * 4 + leaf(even);
	sum += leaf(x + 2 + 6 + 12 + 20 + 30 + 42 + 56) + 7;
	sum += leaf(2);
	COUNT(kind_leaf, 4 + 4 + 1 + 1 + 1);
	CHECK("kind_root", CALL(kind_root, x), sum);
}

static void worker(long index)
{
	for (word x = (word)index << 20; harness_running(); x++) {
		check(x);
		harness_iterated();
	}
}

static void tree(long n)
{
	for (word x = 0; x < (word)n; x++)
		check(x);
	harness_reply("tree done %ld", n);
}

static void burst(long n)
{
	for (word i = 0; i < (word)n; i++) {
		COUNT(kind_leaf, 1);
		CHECK("kind_leaf", kind_leaf(i), leaf(i));
	}
	harness_reply("burst done %ld", n);
}

int main(int argc, char **argv)
{
	static const harness_command commands[] = { { "burst", burst }, { "tree", tree }, { NULL, NULL } };
	harness_spawn(argc > 1 ? atoi(argv[1]) : 3, worker);
	return harness_main(commands, NULL);
}

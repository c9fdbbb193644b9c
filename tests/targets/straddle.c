/* SPDX-License-Identifier: Apache-2.0
 *
 * Threads that call the functions of straddle_asm.S in tight loops and check each result.
 */
#include "harness.h"

typedef unsigned word;

#define SHORT(F) F(5, 12) F(5, 13) F(5, 14) F(5, 15) F(5, 60) F(5, 61) F(5, 62) F(5, 63) \
	F(5, 4092) F(5, 4093) F(5, 4094) F(5, 4095)
#define LONG(F) F(7, 10) F(7, 11) F(7, 58) F(7, 59) F(7, 4090) F(7, 4091) F(7, 4095)
#define DECLARE(size, offset) word straddle_##size##_##offset(unsigned long x);
SHORT(DECLARE)
LONG(DECLARE)
COUNTER(straddle);

#define CHECK_5(size, offset) CHECK("5 at " #offset, straddle_5_##offset(x), x + 0x80000000u + offset);
#define CHECK_7(size, offset) CHECK("7 at " #offset, straddle_7_##offset(x), x + 0x8000u + offset % 256);

static void check(word x)
{
	COUNT(straddle, 19);
	SHORT(CHECK_5)
	LONG(CHECK_7)
}

static void worker(long index)
{
	for (word x = (word)index << 20; harness_running(); x++) {
		check(x);
		harness_iterated();
	}
}

static void burst(long n)
{
	for (word x = 0; x < (word)n; x++)
		check(x);
	harness_reply("burst done %ld", n);
}

int main(void)
{
	static const harness_command commands[] = { { "burst", burst }, { NULL, NULL } };
	harness_spawn(3, worker);
	return harness_main(commands, NULL);
}

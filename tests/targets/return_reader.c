/* SPDX-License-Identifier: Apache-2.0
 *
 * A function that has its return address in registers for as long as it is told to, as
 * an unwinder has it for a moment; the second worker is in a signal handler meanwhile,
 * on an alternate stack. Once a call that waited is over, it must have had the address
 * that a call has which nobody traces.
 */
#include "harness.h"

#include <signal.h>

enum { WORKERS = 2, VALUES = 16, INTERRUPTED = 1 };

struct hold {
	volatile unsigned long wait, entered;
	unsigned long values[VALUES];
};

void hold_return(struct hold *hold);

static struct hold holds[WORKERS];
static unsigned long untraced[WORKERS][VALUES];
static volatile int asked[WORKERS], handled, handler_waits;
static volatile unsigned long ended[WORKERS];

static void on_user(int number)
{
	(void)number;
	handled = 1;
	while (handler_waits)
		;
}

static void worker(long index)
{
	struct hold *hold = &holds[index];
	stack_t stack = { .ss_sp = malloc(1 << 16), .ss_size = 1 << 16 };

	REQUIRE("sigaltstack", stack.ss_sp && !sigaltstack(&stack, NULL));
	for (int first = 1; harness_running(); first = 0) {
		if (!first && !asked[index]) {
			harness_milliseconds(1);
			harness_iterated();
			continue;
		}
		hold_return(hold);
		for (int i = 0; i < VALUES; i++) {
			if (first)
				untraced[index][i] = hold->values[i];
			/* While it is traced a call sees another address: that is H40. */
			else
				CHECK("return address", hold->values[i], untraced[index][i]);
		}
		asked[index] = 0;
		ended[index]++;
		harness_iterated();
	}
}

static void hold(long argument)
{
	(void)argument;
	for (int i = 0; i < WORKERS; i++) {
		unsigned long entered = holds[i].entered;
		while (!ended[i])
			harness_milliseconds(1);
		holds[i].wait = 1;
		asked[i] = 1;
		while (holds[i].entered == entered)
			harness_milliseconds(1);
	}
	handler_waits = 1;
	REQUIRE("pthread_kill", !pthread_kill(harness.threads[INTERRUPTED], SIGUSR1));
	while (!handled)
		harness_milliseconds(1);
	harness_reply("held");
}

static void release(long argument)
{
	unsigned long before[WORKERS];

	(void)argument;
	for (int i = 0; i < WORKERS; i++)
		before[i] = ended[i];
	handler_waits = handled = 0;
	for (int i = 0; i < WORKERS; i++)
		holds[i].wait = 0;
	for (int i = 0; i < WORKERS; i++)
		while (ended[i] == before[i])
			harness_milliseconds(1);
	harness_reply("released");
}

int main(void)
{
	static const harness_command commands[] = {
		{ "hold", hold }, { "release", release }, { NULL, NULL }
	};
	struct sigaction action = { .sa_handler = on_user, .sa_flags = SA_ONSTACK };

	REQUIRE("sigaction", !sigaction(SIGUSR1, &action, NULL));
	harness_spawn(WORKERS, worker);
	return harness_main(commands, NULL);
}

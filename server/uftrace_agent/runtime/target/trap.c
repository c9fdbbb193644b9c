/* trap.c - the handler of SIGTRAP while sites hold traps.
 *
 * It does at once what the instruction will do that is being written, and never
 * waits for the writer: an agent that dies in the middle leaves a program that
 * is slower at some sites and otherwise as it was (H51, H52).
 */
#include <stddef.h>
#include <stdint.h>

#include "annex.h"
#include "arch.h"
#include "params.h"

/* All of the handler is in one place: a thread with its program counter there may
 * still look at the table. */
#define TRAP_CODE __attribute__((section(".text.trap"), noinline))

#define SIGTRAP 5
#define SIG_SETMASK 2
#define SI_KERNEL 0x80 /* the code of a trap that an instruction made */

_Static_assert(sizeof(struct uf_action) == UF_SIGACTION_BYTES, "struct sigaction of the kernel");
_Static_assert(sizeof(struct uf_trap) == UF_TRAP_BYTES, "trapped site");
_Static_assert(offsetof(struct uf_trap, target) == UF_TRAP_TARGET, "trapped site");
_Static_assert(offsetof(struct uf_trap, return_to) == UF_TRAP_RETURN, "trapped site");
_Static_assert(offsetof(struct uf_traps, count) == UF_TRAPS_COUNT, "table of traps");
_Static_assert(offsetof(struct uf_traps, ours) == UF_TRAPS_OURS, "table of traps");
_Static_assert(offsetof(struct uf_traps, programs) == UF_TRAPS_PROGRAMS, "table of traps");
_Static_assert(offsetof(struct uf_traps, answer) == UF_TRAPS_ANSWER, "table of traps");
_Static_assert(offsetof(struct uf_traps, entries) == UF_TRAPS_ENTRIES, "table of traps");
_Static_assert(offsetof(struct uf_params, traps) == UF_PARAM_TRAPS, "parameters");

/* What the kernel hands to a handler: siginfo_t begins so on all 64-bit machines. */
struct siginfo {
	int32_t signal;
	int32_t error;
	int32_t code;
};

TRAP_CODE static const struct uf_trap *find(const struct uf_traps *traps, uint64_t address)
{
	uint64_t low = 0, high = traps->count;

	while (low < high) {
		uint64_t middle = (low + high) / 2;

		if (traps->entries[middle].address < address)
			low = middle + 1;
		else
			high = middle;
	}
	return low < traps->count && traps->entries[low].address == address ? &traps->entries[low] : 0;
}

/* A SIGTRAP that is none of ours is handled as if we were not there: with the signals
 * blocked that the program wants, but for SIGTRAP, which must not meet a trap blocked. */
TRAP_CODE static void chain(const struct uf_action *action, int signal, struct siginfo *info,
			    void *context)
{
	static const struct uf_action by_default;
	uint64_t mask = (uf_saved_mask(context) | action->mask) & ~(1ull << (SIGTRAP - 1));

	if (action->handler == 1) /* SIG_IGN */
		return;
	if (action->handler == 0) { /* SIG_DFL: the end of the program, with its core */
		uf_system_call(UF_RT_SIGACTION, SIGTRAP, (uint64_t)&by_default, 0, 8);
		uf_system_call(UF_TGKILL, uf_system_call(UF_GETPID, 0, 0, 0, 0), uf_gettid(), SIGTRAP,
			       0);
		return;
	}
	uf_system_call(UF_RT_SIGPROCMASK, SIG_SETMASK, (uint64_t)&mask, 0, 8);
	((void (*)(int, struct siginfo *, void *))action->handler)(signal, info, context);
}

__attribute__((visibility("hidden"), used)) TRAP_CODE void uf_trapped(int signal, struct siginfo *info, void *context)
{
	const struct uf_traps *traps = uf_params.traps;
	const struct uf_trap *trap =
		info->code == SI_KERNEL ? find(traps, uf_trap_address(context)) : 0;

	if (trap)
		uf_go_on_at(context, trap->target, trap->return_to);
	else
		chain(&traps->programs, signal, info, context);
}

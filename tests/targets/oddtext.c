/* SPDX-License-Identifier: Apache-2.0
 *
 * Is in a state that few programs are in, by its arguments:
 *   xonly      its code may be run and not read
 *   sealed     its code is sealed against changes of the mapping (mseal)
 *   locked     all its memory is locked
 *   anonymous  its code is a copy in anonymous memory, in huge pages where there are some
 *   shared     its code is mapped shared with its file
 *   notsc      it may not read the tick counter
 *   hidden     it is not dumpable, as programs that hold secrets are
 *   N          it may have N bytes of address space more; also the command space N
 *   maps       it has as many mappings as the kernel allows; also a command, and
 *   unmaps     the end of that
 */
#include "harness.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#define PAGE 4096ul
#define MOST_MAPPINGS 70000ul
#ifndef SYS_mseal
#define SYS_mseal 462
#endif

COUNTER(leaf);
COUNTER(chain);

TRACED long leaf(long x)
{
	KEEP();
	return x * 29 + 4;
}

TRACED long chain(long x)
{
	return leaf(x) * 2;
}

static void worker(long index)
{
	for (long x = index; harness_running(); x++) {
		COUNT(leaf, 1);
		CHECK("chain", CALL(chain, x), (x * 29 + 4) * 2);
		harness_iterated();
		harness_milliseconds(1);
	}
}

static void burst(long n)
{
	for (long i = 0; i < n; i++)
		CHECK("leaf", CALL(leaf, i), i * 29 + 4);
	harness_reply("burst done %ld", n);
}

/* ---- the code's mapping ---- */

static struct {
	char *start;
	unsigned long size, offset;
} text;

static void find_text(void)
{
	char line[512];
	unsigned long start, end;
	FILE *maps = fopen("/proc/self/maps", "r");

	while (maps && fgets(line, sizeof line, maps))
		if (sscanf(line, "%lx-%lx r-xp %lx", &start, &end, &text.offset) == 3 &&
		    start <= (unsigned long)leaf && (unsigned long)leaf < end) {
			text.start = (char *)start;
			text.size = end - start;
		}
	fclose(maps);
	REQUIRE("text", text.start);
}

static void make_anonymous(void)
{
	const unsigned long huge = 2ul << 20;
	char *space = (char *)mmap(NULL, 2 * huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *copy = (char *)(((unsigned long)space + huge - 1) & ~(huge - 1));

	madvise(copy, huge, MADV_HUGEPAGE);
	memcpy(copy, text.start, text.size);
	REQUIRE("mprotect", !mprotect(copy, text.size, PROT_READ | PROT_EXEC));
	/* By one call: the code that makes it is in the C library, or moves with it. */
	REQUIRE("mremap", mremap(copy, text.size, text.size, MREMAP_MAYMOVE | MREMAP_FIXED, text.start) == text.start);
}

static void make_shared(void)
{
	int file = open("/proc/self/exe", O_RDONLY);

	REQUIRE("mmap", mmap(text.start, text.size, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, file,
			     (off_t)text.offset) == text.start);
	close(file);
}

/* ---- limits ---- */

static char *many;

static void fill_maps(void)
{
	many = (char *)mmap(NULL, 2 * MOST_MAPPINGS * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	REQUIRE("mmap", many != MAP_FAILED);
	for (unsigned long i = 0; i < MOST_MAPPINGS; i++)
		if (mprotect(many + 2 * i * PAGE, PAGE, PROT_READ))
			return;
	harness_bad("maps", "no limit at %lu", MOST_MAPPINGS);
}

static void maps(long unused)
{
	(void)unused;
	fill_maps();
	harness_reply("full");
}

static void unmaps(long unused)
{
	(void)unused;
	munmap(many, 2 * MOST_MAPPINGS * PAGE);
	harness_reply("empty");
}

static void limit_space(long more)
{
	char line[256];
	unsigned long pages = 0;
	FILE *file = fopen("/proc/self/statm", "r");
	struct rlimit limit;

	REQUIRE("statm", file && fgets(line, sizeof line, file) && sscanf(line, "%lu", &pages) == 1);
	fclose(file);
	limit.rlim_cur = limit.rlim_max = pages * PAGE + (unsigned long)more;
	REQUIRE("setrlimit", !setrlimit(RLIMIT_AS, &limit));
}

static void space(long more)
{
	limit_space(more);
	harness_reply("limited");
}

static void enter(const char *state)
{
	if (!strcmp(state, "xonly"))
		REQUIRE("mprotect", !mprotect(text.start, text.size, PROT_EXEC));
	else if (!strcmp(state, "sealed"))
		REQUIRE("mseal", !syscall(SYS_mseal, text.start, text.size, 0));
	else if (!strcmp(state, "locked"))
		REQUIRE("mlockall", !mlockall(MCL_CURRENT | MCL_FUTURE));
	else if (!strcmp(state, "anonymous"))
		make_anonymous();
	else if (!strcmp(state, "shared"))
		make_shared();
	else if (!strcmp(state, "notsc"))
		REQUIRE("prctl", !prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0));
	else if (!strcmp(state, "hidden"))
		REQUIRE("prctl", !prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));
	else if (!strcmp(state, "maps"))
		fill_maps();
	else
		limit_space(strtol(state, NULL, 0));
}

int main(int argc, char **argv)
{
	static const harness_command commands[] = {
		{ "burst", burst }, { "maps", maps }, { "unmaps", unmaps }, { "space", space }, { NULL, NULL }
	};

	find_text();
	harness_spawn(2, worker);
	for (int i = 1; i < argc; i++)
		enter(argv[i]);
	return harness_main(commands, NULL);
}

/* sites.c - writing code bytes through /proc/PID/mem.
 *
 * Neighbouring sites go in one read and one write, since each call costs about
 * as much as copying a page. What is written is what was just read with the
 * sites' bytes changed, and only sites that hold exactly the expected bytes
 * are changed: a debugger's or a uprobe's breakpoint stays (H21).
 */
#include "host.h"

#include <errno.h>
#include <string.h>

#include "arch_host.h"

#define SPAN 65536
/* Sites nearer than this share a write. */
#define GAP 1024

/* What the `trap` writer leaves if its agent dies in the middle. */
static int is_half_done(const struct uh_site *site, const uint8_t *live)
{
	if (live[0] != UH_TRAP_BYTE)
		return 0;
	for (int k = 1; k < site->length; k++)
		if (live[k] != site->expected[k] && live[k] != site->wanted[k])
			return 0;
	return 1;
}

static int apply(struct uh_site *site, uint8_t *live)
{
	if (!memcmp(live, site->wanted, site->length)) {
		site->status = UH_SITE_ALREADY;
		return 0;
	}
	if (memcmp(live, site->expected, site->length) &&
	    !(site->may_be_trapped && is_half_done(site, live))) {
		site->status = UH_SITE_CONFLICT;
		return 0;
	}
	memcpy(live, site->wanted, site->length);
	site->status = UH_SITE_WRITTEN;
	return 1;
}

/* The sites one by one, each with the smallest write: for a target that runs. On x86-64
 * only a write of one byte is known to be atomic. On AArch64 that of an aligned word is:
 * the kernel copies four bytes by word stores (arch/arm64/lib/copy_template.S, memcpy.S),
 * cleans the data cache and invalidates the instruction cache behind them
 * (arch/arm64/mm/flush.c, copy_to_user_page). */
UH_API int uh_write_running(int mem_fd, struct uh_site *sites, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		struct uh_site *site = &sites[i];
		uint8_t live[16];
		int first = -1, last = 0;

		site->status = UH_SITE_FAILED;
		if (uh_read_exact(mem_fd, live, site->length, site->address))
			continue;
		if (!apply(site, live))
			continue;
		for (int k = 0; k < site->length; k++)
			if (site->expected[k] != site->wanted[k]) {
				if (first < 0)
					first = k;
				last = k;
			}
		/* Sites are aligned where instructions are. */
		first &= ~(UH_CODE_UNIT - 1);
		last |= UH_CODE_UNIT - 1;
		if (uh_write_exact(mem_fd, live + first, last - first + 1, site->address + first))
			site->status = UH_SITE_FAILED;
	}
	return 0;
}

/* Make the pages private copies beforehand, so that the stopped window does
 * not pay for the copying: each page's byte is written over with itself. */
UH_API int uh_touch(int mem_fd, const struct uh_site *sites, uint32_t count)
{
	uint64_t done = 0;

	for (uint32_t i = 0; i < count; i++) {
		uint64_t page = sites[i].address & ~4095ull;
		uint8_t byte;

		if (page == done)
			continue;
		done = page;
		if (uh_read_exact(mem_fd, &byte, 1, sites[i].address) ||
		    uh_write_exact(mem_fd, &byte, 1, sites[i].address))
			return -EIO;
	}
	return 0;
}

/* All sites in few writes, for a target whose threads are stopped; but for those that
 * explain thunks to unwinders, if some thunks stay. */
int uh_write_sites(int mem_fd, struct uh_site *sites, uint32_t count, int thunks_stay)
{
	static _Thread_local uint8_t live[SPAN];
	uint32_t first = 0;

	while (first < count) {
		uint64_t start = sites[first].address, end = start + sites[first].length;
		uint32_t last = first + 1;
		int changed = 0;

		while (last < count && sites[last].address < end + GAP &&
		       sites[last].address + sites[last].length - start <= SPAN) {
			if (sites[last].address + sites[last].length > end)
				end = sites[last].address + sites[last].length;
			last++;
		}
		if (uh_read_exact(mem_fd, live, end - start, start)) {
			for (uint32_t i = first; i < last; i++)
				sites[i].status = UH_SITE_FAILED;
			first = last;
			continue;
		}
		for (uint32_t i = first; i < last; i++)
			if (!thunks_stay || !sites[i].explains_thunks)
				changed |= apply(&sites[i], live + (sites[i].address - start));
		if (changed && uh_write_exact(mem_fd, live, end - start, start))
			for (uint32_t i = first; i < last; i++)
				if (sites[i].status == UH_SITE_WRITTEN)
					sites[i].status = UH_SITE_FAILED;
		first = last;
	}
	return 0;
}

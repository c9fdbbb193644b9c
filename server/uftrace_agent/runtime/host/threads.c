/* threads.c - which threads a process has.
 *
 * A listing of /proc/PID/task may miss threads that live: where one ends while the
 * kernel stands at it (fs/proc/base.c, next_tid), the listing stops there and goes on
 * by number, which then counts one too few (H95). Of a process that makes and ends
 * threads all the time, one listing in a thousand is short.
 */
#include "host.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* As getdents64(2) writes them. */
struct directory_entry {
	uint64_t inode;
	int64_t next;
	uint16_t size;
	uint8_t type;
	char name[];
};

/* So many listings that the number of threads agrees with, or so many of any kind. */
#define GOOD_LISTINGS 2
#define MOST_LISTINGS 64

/* The number of threads, those included that have ended and are not yet taken off the
 * list: what a whole listing shows. 0 where the process is going away. */
static uint32_t thread_count(pid_t pid)
{
	char path[64], text[1024];
	unsigned count = 0;
	const char *fields;
	ssize_t got;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	got = read(fd, text, sizeof text - 1);
	close(fd);
	text[got > 0 ? got : 0] = 0;
	fields = strrchr(text, ')');
	if (fields)
		sscanf(fields + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d "
		       "%*d %*d %u", &count);
	return count;
}

/* Add a number to those that are there, by rising number, unless it is; how many there are
 * then; `capacity` + 1: it does not fit. Neither qsort nor readdir are used here: they
 * allocate, and the target may stand still (H93). */
static uint32_t insert(pid_t *tids, uint32_t count, uint32_t capacity, pid_t tid)
{
	uint32_t low = 0, high = count;

	if (count && tids[count - 1] < tid) /* as the kernel lists them, mostly */
		low = count;
	while (low < high) {
		uint32_t middle = (low + high) / 2;

		if (tids[middle] < tid)
			low = middle + 1;
		else
			high = middle;
	}
	if (low < count && tids[low] == tid)
		return count;
	if (count == capacity)
		return capacity + 1;
	memmove(&tids[low + 1], &tids[low], (count - low) * sizeof *tids);
	tids[low] = tid;
	return count + 1;
}

/* Add the threads of one listing to `count` others; how many there are then, or a
 * negative errno. *listed: those of this listing. */
static int list_once(pid_t pid, pid_t *tids, uint32_t count, uint32_t capacity, uint32_t *listed)
{
	char path[64];
	long got;
	int fd, error = 0;

	*listed = 0;
	snprintf(path, sizeof path, "/proc/%d/task", pid);
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? -ESRCH : -errno;
	do {
		_Alignas(struct directory_entry) char entries[8192];

		got = syscall(SYS_getdents64, fd, entries, sizeof entries);
		error = got < 0 ? -errno : 0;
		for (long at = 0; at < got && !error;) {
			const struct directory_entry *entry = (const void *)(entries + at);
			pid_t tid = atoi(entry->name);

			at += entry->size;
			*listed += tid > 0;
			if (tid <= 0)
				continue;
			count = insert(tids, count, capacity, tid);
			if (count > capacity)
				error = -E2BIG;
		}
	} while (got > 0 && !error);
	close(fd);
	if (error)
		return error == -ENOENT ? -ESRCH : error;
	return (int)count;
}

/* All threads that live from the beginning to the end of this call, by rising number,
 * and some of those that began or ended meanwhile. How many, -ESRCH where the process
 * is gone, -E2BIG where there are more than `capacity`. */
UH_API int uh_list_threads(int32_t pid, int32_t *tids, uint32_t capacity)
{
	uint32_t good = 0, listed;
	int count = 0;

	for (uint32_t i = 0; i < MOST_LISTINGS && good < GOOD_LISTINGS; i++) {
		const uint32_t before = thread_count(pid);

		count = list_once(pid, tids, (uint32_t)count, capacity, &listed);
		if (count < 0)
			return count;
		good += listed == before && listed == thread_count(pid);
	}
	return count ? count : -ESRCH;
}

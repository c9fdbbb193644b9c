/* threads.c - which threads a process has.
 *
 * A listing of /proc/PID/task may miss threads that live: where one ends while the
 * kernel stands at it (fs/proc/base.c, next_tid), the listing stops there and goes on
 * by number, which then counts one too few (H95). Of a process that makes and ends
 * threads all the time, one listing in a thousand is short.
 */
#include "host.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

static int by_number(const void *one, const void *other)
{
	pid_t a = *(const pid_t *)one, b = *(const pid_t *)other;

	return (a > b) - (a < b);
}

/* Merge what was appended behind `known` sorted numbers; how many there are then. */
static uint32_t merge(pid_t *tids, uint32_t known, uint32_t count)
{
	uint32_t kept = 0;

	if (known == count)
		return count;
	qsort(tids, count, sizeof *tids, by_number);
	for (uint32_t i = 0; i < count; i++)
		if (!kept || tids[kept - 1] != tids[i])
			tids[kept++] = tids[i];
	return kept;
}

/* Append the threads of one listing that are not among the first `count`; how many
 * there are then, or a negative errno. *listed: those of this listing. */
static int list_once(pid_t pid, pid_t *tids, uint32_t count, uint32_t capacity, uint32_t *listed)
{
	const uint32_t known = count;
	char path[64];
	struct dirent *entry;
	DIR *tasks;

	*listed = 0;
	snprintf(path, sizeof path, "/proc/%d/task", pid);
	tasks = opendir(path);
	if (!tasks)
		return errno == ENOENT ? -ESRCH : -errno;
	while ((entry = readdir(tasks))) {
		pid_t tid = atoi(entry->d_name);

		if (tid <= 0)
			continue;
		++*listed;
		if (bsearch(&tid, tids, known, sizeof *tids, by_number))
			continue;
		if (count == capacity) {
			closedir(tasks);
			return -E2BIG;
		}
		tids[count++] = tid;
	}
	closedir(tasks);
	return (int)merge(tids, known, count);
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

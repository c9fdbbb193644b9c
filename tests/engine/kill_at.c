/* kill_at.c - loaded before the C library: ends the process at a chosen step.
 *
 * A step is the moment before, or after, a call by which the engine changes or
 * stops another process. kill_at(n): SIGKILL at the n-th step from now; 0: never.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

static atomic_long steps_left, steps_done;

void kill_at(long n)
{
	atomic_store(&steps_left, n);
	atomic_store(&steps_done, 0);
}

long steps_made(void)
{
	return atomic_load(&steps_done);
}

static void step(void)
{
	atomic_fetch_add(&steps_done, 1);
	if (atomic_load(&steps_left) > 0 && atomic_fetch_sub(&steps_left, 1) == 1)
		kill(getpid(), SIGKILL);
}

#define REAL(name) \
	static __typeof__(&name) real; \
	if (!real) \
		real = (__typeof__(real))dlsym(RTLD_NEXT, #name)

#define WRITE(name) \
	ssize_t name(int fd, const void *data, size_t size, off_t offset) \
	{ \
		REAL(name); \
		step(); \
		ssize_t done = real(fd, data, size, offset); \
		step(); \
		return done; \
	}

WRITE(pwrite)
WRITE(pwrite64)

int sched_setaffinity(pid_t pid, size_t size, const cpu_set_t *set)
{
	REAL(sched_setaffinity);
	step();
	int done = real(pid, size, set);
	step();
	return done;
}

int waitid(idtype_t type, id_t id, siginfo_t *info, int options)
{
	REAL(waitid);
	int done = real(type, id, info, options);
	/* Polled: only what it found is a step. */
	if (!done && info && info->si_pid)
		step();
	return done;
}

long ptrace(int request, ...)
{
	static long (*real)(int, ...);
	va_list list;

	if (!real)
		real = (long (*)(int, ...))dlsym(RTLD_NEXT, "ptrace");
	va_start(list, request);
	pid_t pid = va_arg(list, pid_t);
	void *address = va_arg(list, void *), *data = va_arg(list, void *);
	va_end(list);
	step();
	long done = real(request, pid, address, data);
	step();
	return done;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * Threads that do nothing but wait, each in another system call and with a
 * timeout that never comes. They block every signal but one of their own, so
 * an EINTR that the program did not cause is somebody else's doing: BAD.
 */
#ifndef TARGETS_WAITERS_H
#define TARGETS_WAITERS_H

#include "harness.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

enum { WAIT_SECONDS = 3600 };
/* musl-gcc does not see the kernel's headers. */
enum { FUTEX_WAIT_OPERATION = 0 | 128 /* private */ };
#define WAKE_SIGNAL (SIGRTMIN + 3)

COUNTER(waiter_step);
COUNTER_NAMED(waiter_wakes, "wakes");

typedef struct waiter {
	const char *name;
	long (*wait)(void);
	pthread_t thread;
	unsigned long signals; /* written by its own signal handler */
	unsigned long wakes;
	int pid; /* of the thread, once it runs */
} waiter;

static __thread waiter *waiter_self;
static int waiters_finishing;
static int waiter_semaphores = -1;

TRACED unsigned long waiter_step(unsigned long x)
{
	KEEP();
	return x * 3 + 2;
}

static const struct timespec waiter_timeout = { WAIT_SECONDS, 0 };

TRACED long wait_epoll(void)
{
	struct epoll_event event;
	int epoll = epoll_create1(0);
	long got = epoll_wait(epoll, &event, 1, WAIT_SECONDS * 1000);
	int error = errno;
	close(epoll);
	errno = error;
	return got;
}

TRACED long wait_epoll_forever(void)
{
	static int epoll = -1;
	struct epoll_event event;
	if (epoll < 0)
		epoll = epoll_create1(0);
	return epoll_wait(epoll, &event, 1, -1);
}

static int waiter_socket(void)
{
	int pair[2];
	REQUIRE("socketpair", socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	return pair[0]; /* the other end stays open until the program ends */
}

TRACED long wait_recv_timeout(void)
{
	static int socket = -1;
	struct timeval timeout = { WAIT_SECONDS, 0 };
	char byte;
	if (socket < 0)
		socket = waiter_socket();
	setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
	return recv(socket, &byte, 1, 0);
}

TRACED long wait_recv(void)
{
	static int socket = -1;
	char byte;
	if (socket < 0)
		socket = waiter_socket();
	return recv(socket, &byte, 1, 0);
}

TRACED long wait_accept(void)
{
	static int listener = -1;
	struct sockaddr_un any = { .sun_family = AF_UNIX }; /* the kernel picks a name */
	if (listener < 0) {
		listener = socket(AF_UNIX, SOCK_STREAM, 0);
		REQUIRE("bind", bind(listener, (struct sockaddr *)&any, sizeof any.sun_family) == 0);
		REQUIRE("listen", listen(listener, 1) == 0);
	}
	return accept(listener, NULL, NULL);
}

TRACED long wait_semtimedop(void)
{
	struct sembuf take = { 0, -1, 0 };
	return semtimedop(waiter_semaphores, &take, 1, &waiter_timeout);
}

TRACED long wait_sem_timed(void)
{
	static sem_t semaphore;
	struct timespec until;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += WAIT_SECONDS;
	sem_init(&semaphore, 0, 0);
	return sem_timedwait(&semaphore, &until);
}

TRACED long wait_sigtimed(void)
{
	/* The plain system call: musl's sigtimedwait hides EINTR. */
	unsigned long set = 1ul << (SIGUSR2 - 1);
	return syscall(SYS_rt_sigtimedwait, &set, NULL, &waiter_timeout, sizeof set);
}

TRACED long wait_nanosleep(void)
{
	return nanosleep(&waiter_timeout, NULL);
}

TRACED long wait_clock_absolute(void)
{
	struct timespec until;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += WAIT_SECONDS;
	errno = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
	return errno ? -1 : 0;
}

TRACED long wait_poll(void)
{
	return poll(NULL, 0, WAIT_SECONDS * 1000);
}

TRACED long wait_select(void)
{
	struct timeval timeout = { WAIT_SECONDS, 0 };
	return select(0, NULL, NULL, NULL, &timeout);
}

TRACED long wait_futex(void)
{
	static int word;
	return syscall(SYS_futex, &word, FUTEX_WAIT_OPERATION, 0, &waiter_timeout, NULL, 0);
}

TRACED long wait_futex_forever(void)
{
	static int word;
	return syscall(SYS_futex, &word, FUTEX_WAIT_OPERATION, 0, NULL, NULL, 0);
}

TRACED long wait_pipe(void)
{
	static int ends[2] = { -1, -1 };
	char byte;
	if (ends[0] < 0)
		REQUIRE("pipe", pipe(ends) == 0);
	return read(ends[0], &byte, 1);
}

static waiter waiters[] = {
	{ .name = "epoll_wait", .wait = wait_epoll },
	{ .name = "epoll_wait forever", .wait = wait_epoll_forever },
	{ .name = "recv SO_RCVTIMEO", .wait = wait_recv_timeout },
	{ .name = "recv", .wait = wait_recv },
	{ .name = "accept", .wait = wait_accept },
	{ .name = "sem_timedwait", .wait = wait_sem_timed },
	{ .name = "sigtimedwait", .wait = wait_sigtimed },
	{ .name = "nanosleep", .wait = wait_nanosleep },
	{ .name = "clock_nanosleep", .wait = wait_clock_absolute },
	{ .name = "poll", .wait = wait_poll },
	{ .name = "select", .wait = wait_select },
	{ .name = "futex", .wait = wait_futex },
	{ .name = "futex forever", .wait = wait_futex_forever },
	{ .name = "read", .wait = wait_pipe },
	{ .name = "semtimedop", .wait = wait_semtimedop }, /* last: may be left out */
};
static int waiters_count = (int)(sizeof waiters / sizeof waiters[0]);

static void waiter_signal(int number)
{
	(void)number;
	if (waiter_self)
		waiter_self->signals++;
}

static void *waiter_start(void *argument)
{
	waiter *self = (waiter *)argument;
	waiter_self = self;
	sigset_t mask;
	sigfillset(&mask);
	sigdelset(&mask, WAKE_SIGNAL);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	__atomic_store_n(&self->pid, (int)syscall(SYS_gettid), __ATOMIC_RELEASE);
	while (!__atomic_load_n(&waiters_finishing, __ATOMIC_ACQUIRE)) {
		unsigned long before = *(volatile unsigned long *)&self->signals;
		errno = 0;
		long got = self->wait();
		int error = errno;
		if (got != -1 || error != EINTR)
			harness_bad(self->name, "got %ld (errno %d) want nothing for an hour", got, error);
		if (*(volatile unsigned long *)&self->signals == before)
			harness_bad(self->name, "got EINTR want none: the program sent no signal");
		CHECK("waiter_step", CALL(waiter_step, before), before * 3 + 2);
		__atomic_add_fetch(&waiter_wakes.value, 1, __ATOMIC_RELAXED);
		__atomic_add_fetch(&self->wakes, 1, __ATOMIC_RELEASE);
	}
	return NULL;
}

/* Starts one thread per call and returns when each is about to wait. Call it
 * before any other thread is started. */
static void waiters_start(void)
{
	struct sigaction action = { .sa_handler = waiter_signal }; /* no SA_RESTART: it wakes */
	sigaction(WAKE_SIGNAL, &action, NULL);
	/* In a namespace of its own the semaphore dies with the program. */
	if (unshare(CLONE_NEWIPC) == 0)
		waiter_semaphores = semget(IPC_PRIVATE, 1, 0600);
	if (waiter_semaphores < 0)
		waiters_count--;
	for (int i = 0; i < waiters_count; i++)
		REQUIRE("create", pthread_create(&waiters[i].thread, NULL, waiter_start, &waiters[i]) == 0);
	for (int i = 0; i < waiters_count; i++)
		while (!__atomic_load_n(&waiters[i].pid, __ATOMIC_ACQUIRE))
			harness_milliseconds(1);
}

/* Wakes every waiter once, with a signal of the program's own. A signal that
 * arrives just before the call does not interrupt it, so it is sent again. */
static void waiters_wake(void)
{
	for (int i = 0; i < waiters_count; i++) {
		unsigned long before = __atomic_load_n(&waiters[i].wakes, __ATOMIC_ACQUIRE);
		while (__atomic_load_n(&waiters[i].wakes, __ATOMIC_ACQUIRE) == before) {
			pthread_kill(waiters[i].thread, WAKE_SIGNAL);
			harness_milliseconds(1);
		}
	}
}

/* The command `poke`: every waiter leaves its call and enters it again. */
__attribute__((unused)) static void waiters_poke(long argument)
{
	(void)argument;
	waiters_wake();
	harness_reply("poke done %d", waiters_count);
}

static void waiters_finish(void)
{
	__atomic_store_n(&waiters_finishing, 1, __ATOMIC_RELEASE);
	waiters_wake();
	for (int i = 0; i < waiters_count; i++)
		pthread_join(waiters[i].thread, NULL);
}

#endif

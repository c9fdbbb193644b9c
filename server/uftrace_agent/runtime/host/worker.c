/* worker.c - a thread for the length of one ptrace operation.
 *
 * ptrace binds a tracee to the tracing *thread*, and the kernel lets all its
 * tracees go when that thread ends (kernel/ptrace.c, exit_ptrace; H71). So each
 * operation gets a thread of its own: whatever goes wrong in it, nothing stays
 * attached afterwards, not even a thread that could not be stopped.
 */
#include "host.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

struct job {
	int (*run)(void *);
	void *argument;
	int result;
};

/* Before everybody else on its processor, for as long as somebody waits for this thread;
 * where it is not allowed, the niceness has to do. Only for what is short. */
void uh_hurry(int on)
{
	const struct sched_param param = { .sched_priority = on ? 1 : 0 };

	sched_setscheduler(0, on ? SCHED_FIFO : SCHED_OTHER, &param);
}

static void *work(void *argument)
{
	struct job *job = argument;

	/* While this thread waits for a processor, threads of the target are
	 * stopped: before all others, where that is allowed. */
	setpriority(PRIO_PROCESS, syscall(SYS_gettid), -20);
	job->result = job->run(job->argument);
	return 0;
}

int uh_run_as_tracer(int (*run)(void *), void *argument)
{
	struct job job = { run, argument, 0 };
	sigset_t all, before;
	pthread_t thread;
	int error;

	/* The agent's signals are for its main thread. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&thread, 0, work, &job);
	pthread_sigmask(SIG_SETMASK, &before, 0);
	if (error)
		return -error;
	pthread_join(thread, 0);
	return job.result;
}

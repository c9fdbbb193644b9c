/* SPDX-License-Identifier: Apache-2.0
 *
 * Threads that end at once, and between them some that live a little longer.
 */
#include "harness.h"

enum { BATCH = 20 };

static void *end_at_once(void *argument)
{
	return argument;
}

static void *live_on(void *argument)
{
	struct timespec some = { 0, 3000000 };
	nanosleep(&some, NULL);
	return argument;
}

static void worker(long index)
{
	(void)index;
	while (harness_running()) {
		pthread_t threads[BATCH];
		for (int i = 0; i < BATCH; i++)
			CHECK("pthread_create",
			      pthread_create(&threads[i], NULL, i % 2 ? live_on : end_at_once, NULL), 0);
		for (int i = 0; i < BATCH; i++)
			CHECK("pthread_join", pthread_join(threads[i], NULL), 0);
		harness_iterated();
	}
}

int main(void)
{
	harness_spawn(2, worker);
	return harness_main(NULL, NULL);
}

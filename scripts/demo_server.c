/* SPDX-License-Identifier: Apache-2.0
 *
 * The sample program of `make demo`: an order server that serves itself.
 * Four worker threads handle made-up requests until SIGTERM; nothing of it
 * knows about tracing. Build: cc -O2 -pthread demo_server.c
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Each function stays a function under its own name: what the compiler inlines
 * or clones would be missing from the tree. */
#if defined(__clang__)
#define FUNCTION __attribute__((noinline))
#else
#define FUNCTION __attribute__((noinline, noclone, noipa))
#endif

enum { WORKERS = 4, CACHE_SLOTS = 64, ITEMS = 6 };

struct request {
	unsigned long number;
	char line[96];
	char user[16];
	unsigned order;
};

struct order {
	unsigned id, quantity;
	unsigned long price;
	char item[32];
};

static volatile sig_atomic_t running = 1;
static struct order cache[CACHE_SLOTS];
static pthread_mutex_t cache_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned long served[WORKERS], log_bytes;

/* Computes for about this long: work that a profiler would see. */
static void work(long microseconds)
{
	struct timespec now, start;
	clock_gettime(CLOCK_MONOTONIC, &start);
	do
		clock_gettime(CLOCK_MONOTONIC, &now);
	while ((now.tv_sec - start.tv_sec) * 1000000 + (now.tv_nsec - start.tv_nsec) / 1000 < microseconds);
}

static void rest(long microseconds)
{
	struct timespec pause = { microseconds / 1000000, microseconds % 1000000 * 1000 };
	nanosleep(&pause, NULL);
}

FUNCTION int parse_request(struct request *request)
{
	work(3);
	return sscanf(request->line, "GET /orders/%u?user=%15s", &request->order, request->user) == 2;
}

FUNCTION unsigned long hash_password(const char *user, int rounds)
{
	unsigned long hash = 14695981039346656037u;
	for (int i = 0; i < rounds; i++)
		for (const char *c = user; *c; c++)
			hash = (hash ^ (unsigned char)*c) * 1099511628211u;
	return hash;
}

FUNCTION int authenticate(const struct request *request)
{
	return hash_password(request->user, 4000) != 0;
}

FUNCTION int cache_get(unsigned id, struct order *order)
{
	pthread_mutex_lock(&cache_lock);
	int found = cache[id % CACHE_SLOTS].id == id;
	if (found)
		*order = cache[id % CACHE_SLOTS];
	pthread_mutex_unlock(&cache_lock);
	return found;
}

FUNCTION void cache_put(const struct order *order)
{
	pthread_mutex_lock(&cache_lock);
	cache[order->id % CACHE_SLOTS] = *order;
	pthread_mutex_unlock(&cache_lock);
}

FUNCTION void disk_read(unsigned id, struct order *order)
{
	static const char *const items[ITEMS] = { "lamp \"Luna\"", "desk",     "chair",
						  "shelf",	   "rug <blue>", "mirror" };
	rest(900 + id % 7 * 250); /* the disk's own time */
	order->id = id;
	order->quantity = id % 5 + 1;
	order->price = 995 + id * 37 % 20000;
	snprintf(order->item, sizeof order->item, "%s", items[id % ITEMS]);
}

FUNCTION int db_query(unsigned id, struct order *order)
{
	work(8);
	if (cache_get(id, order))
		return 1;
	disk_read(id, order);
	cache_put(order);
	return 1;
}

FUNCTION int lookup_order(const struct request *request, struct order *order)
{
	return db_query(request->order, order) && order->quantity > 0;
}

FUNCTION size_t escape_string(const char *text, char *out)
{
	size_t length = 0;
	for (; *text; text++) {
		if (*text == '"' || *text == '\\')
			out[length++] = '\\';
		out[length++] = *text;
	}
	out[length] = 0;
	work(1);
	return length;
}

FUNCTION int format_json(const struct order *order, const char *user, char *out, size_t size)
{
	char item[2 * sizeof order->item], name[2 * 16];
	escape_string(order->item, item);
	escape_string(user, name);
	return snprintf(out, size, "{\"order\":%u,\"user\":\"%s\",\"item\":\"%s\",\"quantity\":%u,\"price\":%lu.%02lu}",
			order->id, name, item, order->quantity, order->price / 100, order->price % 100);
}

FUNCTION int render_response(const struct request *request, const struct order *order, char *out, size_t size)
{
	int length = format_json(order, request->user, out, size);
	work(4);
	return length;
}

FUNCTION void log_request(const struct request *request, int length)
{
	char line[160];
	int wrote = snprintf(line, sizeof line, "#%lu %s 200 %d", request->number, request->line, length);
	__atomic_add_fetch(&log_bytes, (unsigned long)wrote, __ATOMIC_RELAXED);
}

FUNCTION int serve_request(struct request *request)
{
	struct order order = { 0 };
	char response[256];
	if (!parse_request(request) || !authenticate(request))
		return -1;
	if (!lookup_order(request, &order))
		return -1;
	int length = render_response(request, &order, response, sizeof response);
	log_request(request, length);
	return length;
}

/* Makes up the next request: few orders are popular, most are not. */
FUNCTION void receive_request(unsigned *state, unsigned long number, struct request *request)
{
	static const char *const users[] = { "ada", "grace", "edsger", "barbara", "donald" };
	unsigned random = rand_r(state), order = random % 3 ? random % 20 : random % 5000;
	memset(request, 0, sizeof *request);
	request->number = number;
	snprintf(request->line, sizeof request->line, "GET /orders/%u?user=%s", order + 1, users[random % 5]);
}

static void *worker_main(void *argument)
{
	unsigned long index = (unsigned long)argument;
	unsigned state = (unsigned)index + 1;
	struct request request;
	while (running) {
		receive_request(&state, ++served[index], &request);
		if (serve_request(&request) < 0) {
			fprintf(stderr, "request failed: %s\n", request.line);
			exit(1);
		}
		rest(2000); /* until the next request comes in */
	}
	return NULL;
}

static void stop(int signal_number)
{
	(void)signal_number;
	running = 0;
}

int main(void)
{
	pthread_t threads[WORKERS];
	sigset_t only_main, before;
	struct sigaction action = { .sa_handler = stop };
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);

	/* The signals are for the main thread: workers start with them blocked. */
	sigemptyset(&only_main);
	sigaddset(&only_main, SIGTERM);
	sigaddset(&only_main, SIGINT);
	pthread_sigmask(SIG_BLOCK, &only_main, &before);
	for (unsigned long i = 0; i < WORKERS; i++)
		if (pthread_create(&threads[i], NULL, worker_main, (void *)i)) {
			perror("pthread_create");
			return 1;
		}
	printf("order server running, pid %d\n", getpid());
	fflush(stdout);
	while (running)
		sigsuspend(&before);

	unsigned long total = 0;
	for (unsigned long i = 0; i < WORKERS; i++) {
		pthread_join(threads[i], NULL);
		total += served[i];
	}
	printf("served %lu requests\n", total);
	return 0;
}

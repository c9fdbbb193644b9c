/* SPDX-License-Identifier: Apache-2.0
 *
 * Loads and unloads plugin.so on command while threads use it.
 *   load -> loaded, unload -> unloaded, cycle N -> cycle done N
 */
#include "harness.h"

#include <dlfcn.h>

COUNTER(leaf);
COUNTER(host_work);
COUNTER(plugin_work);
COUNTER(plugin_leaf);

static pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;
static void *library;
static long (*plugin_work)(long);
static char path[4096];

TRACED long leaf(long x)
{
	KEEP();
	return x * 19 + 6;
}

TRACED long host_work(long x)
{
	return leaf(x) + leaf(x + 1);
}

static void check_plugin(long x)
{
	pthread_rwlock_rdlock(&lock);
	if (library) {
		COUNT(plugin_work, 1);
		COUNT(plugin_leaf, 2);
		CHECK("plugin_work", plugin_work(x), x * 46 + 25);
	}
	pthread_rwlock_unlock(&lock);
}

static void worker(long index)
{
	for (long x = index; harness_running(); x++) {
		COUNT(leaf, 2);
		CHECK("host_work", CALL(host_work, x), x * 38 + 31);
		check_plugin(x);
		harness_iterated();
		/* A reader's lock that is never free starves the loader. */
		sched_yield();
	}
}

static void set_loaded(int loaded)
{
	pthread_rwlock_wrlock(&lock);
	if (loaded && !library) {
		library = dlopen(path, RTLD_NOW);
		if (!library)
			harness_bad("dlopen", "%s", dlerror());
		*(void **)&plugin_work = dlsym(library, "plugin_work");
		REQUIRE("dlsym", plugin_work != NULL);
	} else if (!loaded && library) {
		CHECK("dlclose", dlclose(library), 0);
		library = NULL;
	}
	pthread_rwlock_unlock(&lock);
}

static void load(long argument)
{
	(void)argument;
	set_loaded(1);
	harness_reply("loaded");
}

static void unload(long argument)
{
	(void)argument;
	set_loaded(0);
	harness_reply("unloaded");
}

static void cycle(long n)
{
	for (long i = 0; i < n; i++) {
		set_loaded(1);
		check_plugin(i);
		set_loaded(0);
	}
	harness_reply("cycle done %ld", n);
}

static void burst(long n)
{
	for (long i = 0; i < n; i++)
		CHECK("leaf", CALL(leaf, i), i * 19 + 6);
	harness_reply("burst done %ld", n);
}

int main(void)
{
	static const harness_command commands[] = {
		{ "burst", burst }, { "load", load }, { "unload", unload }, { "cycle", cycle }, { NULL, NULL }
	};
	/* plugin.so lies beside the program. */
	ssize_t length = readlink("/proc/self/exe", path, sizeof path - 16);
	REQUIRE("readlink", length > 0);
	path[length] = 0;
	strcpy(strrchr(path, '/') + 1, "plugin.so");
	harness_spawn(2, worker);
	return harness_main(commands, NULL);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * What dlopen.c loads and unloads.
 */
#include "harness_traced.h"

static int initialised;

__attribute__((constructor)) static void plugin_start(void)
{
	initialised = 1;
}

TRACED long plugin_leaf(long x)
{
	KEEP();
	return x * 23 + initialised;
}

TRACED long plugin_work(long x)
{
	return plugin_leaf(x) + plugin_leaf(x + 1);
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * A Python interpreter whose functions are in libpython3.11.so: Debian's own
 * python3.11 has a copy of its own linked in.
 */
#include <Python.h>

int main(int count, char **arguments)
{
	return Py_BytesMain(count, arguments);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* A python executable that holds no interpreter of its own: CPython comes from the shared libpython. */
#include <Python.h>

int main(int argc, char **argv)
{
	return Py_BytesMain(argc, argv);
}

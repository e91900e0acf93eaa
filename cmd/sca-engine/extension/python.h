/* SPDX-License-Identifier: Apache-2.0 */
/* One engine file serves CPython 3.8 and later: only what the stable ABI of 3.8 has is used. */
#ifndef SCA_PYTHON_H
#define SCA_PYTHON_H

#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x03080000
#endif
#include <Python.h>

/*
 * The macros of the headers count in the object itself. From 3.12 on the counts of some objects, small
 * numbers among them, must stay as they are (PEP 683), which only the interpreter's own functions know.
 */
#undef Py_INCREF
#undef Py_XINCREF
#undef Py_DECREF
#undef Py_XDECREF
#undef Py_CLEAR
#define Py_INCREF(object) Py_IncRef((PyObject *)(object))
#define Py_XINCREF(object) Py_IncRef((PyObject *)(object))
#define Py_DECREF(object) Py_DecRef((PyObject *)(object))
#define Py_XDECREF(object) Py_DecRef((PyObject *)(object))
#define Py_CLEAR(object)                                                                           \
	do {                                                                                       \
		PyObject *cleared = (PyObject *)(object);                                          \
		(object) = NULL;                                                                   \
		Py_DecRef(cleared);                                                                \
	} while (0)

#endif

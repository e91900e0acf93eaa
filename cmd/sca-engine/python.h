/* SPDX-License-Identifier: Apache-2.0 */
/* One engine file serves CPython 3.8 and later: only what the stable ABI of 3.8 has is used. */
#ifndef SCA_PYTHON_H
#define SCA_PYTHON_H

#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x03080000
#endif
#include <Python.h>

#endif

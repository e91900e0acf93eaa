// SPDX-License-Identifier: Apache-2.0
/* The extension module sca_probe._engine: what Python sees of the engine. */
#include "host.h"

#include <stdlib.h>
#include <string.h>

/* Exported by Go. Neither may be called with the GIL held: Go may be waiting for it. */
extern void scaStart(char *path, int major, int minor);
extern char *scaTargets(void);

static int started; /* guarded by the GIL */

static PyObject *engine_start(PyObject *self, PyObject *args)
{
	const char *path;
	int major, minor;

	(void)self;
	if (!PyArg_ParseTuple(args, "sii:start", &path, &major, &minor))
		return NULL;
	if (sca_host_forked()) {
		PyErr_SetString(
			PyExc_RuntimeError,
			"this copy of the engine was loaded before fork(): it still counts, "
			"but it cannot apply Remote Configuration in the child");
		return NULL;
	}
	if (!started) {
		char *copy = strdup(path);

		if (!copy)
			return PyErr_NoMemory();
		if (sca_host_init(minor) < 0) {
			free(copy);
			return NULL;
		}
		started = 1;
		Py_BEGIN_ALLOW_THREADS
		scaStart(copy, major, minor);
		Py_END_ALLOW_THREADS
		free(copy);
	}
	Py_IncRef(Py_None);
	return Py_None;
}

static PyObject *engine_stop(PyObject *self, PyObject *unused)
{
	(void)self, (void)unused;
	if (started && !sca_host_forked())
		sca_host_stop();
	Py_IncRef(Py_None);
	return Py_None;
}

static PyObject *engine_targets(PyObject *self, PyObject *unused)
{
	PyObject *json;
	char *text;

	(void)self, (void)unused;
	if (!started || sca_host_forked())
		return PyUnicode_FromString("[]");
	Py_BEGIN_ALLOW_THREADS
	text = scaTargets();
	Py_END_ALLOW_THREADS
	json = PyUnicode_FromString(text);
	free(text);
	return json;
}

static PyObject *engine_hooks(PyObject *self, PyObject *unused)
{
	(void)self, (void)unused;
	return sca_hooks_list();
}

static PyMethodDef methods[] = {
	{ "start", engine_start, METH_VARARGS,
	  "start(path, major, minor): follow the Remote Configuration file at path." },
	{ "stop", engine_stop, METH_NOARGS, "Let no patch or revert begin any more." },
	{ "targets", engine_targets, METH_NOARGS, "The state of every target, as JSON." },
	{ "hooks", engine_hooks, METH_NOARGS, "All living hooks, also in a forked child." },
	{ NULL, NULL, 0, NULL },
};

static struct PyModuleDef module = {
	PyModuleDef_HEAD_INIT,
	"_engine",
	"The engine of sca-probe.",
	-1,
	methods,
	NULL,
	NULL,
	NULL,
	NULL,
};

PyMODINIT_FUNC PyInit__engine(void);
__attribute__((visibility("default"))) PyMODINIT_FUNC PyInit__engine(void)
{
	return PyModule_Create(&module);
}

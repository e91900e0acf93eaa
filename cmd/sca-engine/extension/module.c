// SPDX-License-Identifier: Apache-2.0
/* The extension module sca_probe._engine: what Python sees of the engine. */
#include "code.h"
#include "configurations.h"
#include "events.h"
#include "hook.h"
#include "numbers.h"
#include "resolve.h"
#include "runtime.h"

#include <stdlib.h>

static PyObject *raise_reason(void)
{
	char reason[SCA_REASON_SIZE];

	sca_runtime_reason(reason);
	PyErr_SetString(PyExc_RuntimeError, reason);
	return NULL;
}

static PyObject *engine_start(PyObject *self, PyObject *args)
{
	const char *source;
	int major, minor, magic;

	(void)self;
	if (!PyArg_ParseTuple(args, "siii:start", &source, &major, &minor, &magic))
		return NULL;
	if (sca_engine.state == SCA_ENGINE_OFF &&
	    (sca_hook_init(minor) < 0 || sca_code_init(minor) < 0 || sca_resolve_init() < 0))
		return NULL;
	if (sca_engine.state == SCA_ENGINE_STOPPED) {
		PyErr_SetString(PyExc_RuntimeError, "the engine has been stopped");
		return NULL;
	}
	if (sca_runtime_start(source, major, minor, magic) < 0)
		return NULL;
	if (sca_engine.state == SCA_ENGINE_REFUSED || sca_engine.state == SCA_ENGINE_HALTED)
		return raise_reason();
	Py_IncRef(Py_None);
	return Py_None;
}

static PyObject *engine_stop(PyObject *self, PyObject *unused)
{
	(void)self, (void)unused;
	sca_runtime_stop();
	Py_IncRef(Py_None);
	return Py_None;
}

static PyObject *engine_forked(PyObject *self, PyObject *unused)
{
	(void)self, (void)unused;
	sca_runtime_child();
	Py_IncRef(Py_None);
	return Py_None;
}

static PyObject *engine_targets(PyObject *self, PyObject *unused)
{
	PyObject *text;
	char *json;

	(void)self, (void)unused;
	if (sca_engine.state == SCA_ENGINE_OFF)
		return PyUnicode_FromString("[]");
	json = sca_event_ask();
	if (sca_engine.state == SCA_ENGINE_HALTED) {
		free(json);
		return raise_reason();
	}
	if (!json) {
		PyErr_SetString(
			PyExc_TimeoutError,
			"sca-probe's engine has not answered within 10 s: the machine has too much "
			"to do, or too little memory; ask again");
		return NULL;
	}
	text = PyUnicode_FromString(json);
	free(json);
	return text;
}

static PyObject *engine_numbers(PyObject *self, PyObject *unused)
{
	char reason[SCA_REASON_SIZE];
	PyObject *numbers;
	int i;

	(void)self, (void)unused;
	sca_runtime_reason(reason);
	numbers = Py_BuildValue("{s:s,s:s,s:I}", "engine", sca_engine_states[sca_engine.state],
				"reason", reason, "forks", sca_engine.forks);
	for (i = 0; numbers && i < SCA_NUMBERS; i++) {
		PyObject *number = PyLong_FromUnsignedLongLong(
			__atomic_load_n(&sca_engine.numbers[i], __ATOMIC_RELAXED));

		if (!number || PyDict_SetItemString(numbers, sca_number_names[i], number) < 0)
			Py_CLEAR(numbers);
		Py_XDECREF(number);
	}
	return numbers;
}

static PyObject *engine_hooks(PyObject *self, PyObject *unused)
{
	(void)self, (void)unused;
	return sca_hook_list();
}

static PyObject *engine_resolve(PyObject *self, PyObject *args)
{
	struct sca_reading reading = { 0 };
	const char *state = "resolved";
	PyObject *answer;

	(void)self;
	if (!PyArg_ParseTuple(args, "ss:resolve", &reading.module, &reading.qualname))
		return NULL;
	if (sca_engine.state == SCA_ENGINE_OFF) {
		PyErr_SetString(PyExc_RuntimeError, "the engine is not loaded");
		return NULL;
	}
	reading.status = sca_resolve(&reading, 0);
	if (reading.status == SCA_NOT_IMPORTED)
		state = "pending";
	else if (reading.status != SCA_OK)
		state = "unresolved";
	answer = Py_BuildValue("(sOs)", state, reading.function ? reading.function : Py_None,
			       reading.status == SCA_OK ? "" : reading.reason);
	Py_XDECREF(reading.function);
	Py_XDECREF(reading.code);
	return answer;
}

static PyObject *engine_push(PyObject *self, PyObject *changes)
{
	(void)self;
	if (sca_configurations_push(changes) < 0)
		return NULL;
	Py_IncRef(Py_None);
	return Py_None;
}

static PyObject *engine_states(PyObject *self, PyObject *unused)
{
	(void)self, (void)unused;
	return sca_configurations_states();
}

static PyMethodDef methods[] = {
	{ "start", engine_start, METH_VARARGS,
	  "start(source, major, minor, magic): follow the Remote Configuration at source." },
	{ "resolve", engine_resolve, METH_VARARGS,
	  "resolve(module, qualname): (state, function or None, reason)." },
	{ "push", engine_push, METH_O,
	  "push([(path, payload or None), ...]): hand configurations over, or withdraw them." },
	{ "states", engine_states, METH_NOARGS,
	  "What became of each configuration: [(path, apply state, error), ...]." },
	{ "stop", engine_stop, METH_NOARGS, "Let no patch or revert begin any more." },
	{ "forked", engine_forked, METH_NOARGS, "Carry on in a forked child." },
	{ "targets", engine_targets, METH_NOARGS, "The state of every target, as JSON." },
	{ "numbers", engine_numbers, METH_NOARGS, "What the engine does, as numbers." },
	{ "hooks", engine_hooks, METH_NOARGS, "All living hooks." },
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

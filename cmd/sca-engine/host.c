// SPDX-License-Identifier: Apache-2.0
#include "host.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* As many decorators around one function, or classes in one qualified name, as are followed. */
#define MAX_DEPTH 32

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static int stopped = 1; /* guarded by turn */
static int forked;

static PyObject *function_type, *staticmethod_type, *classmethod_type, *property_type;
static PyObject *type_mro, *type_dict; /* descriptors: reading by them runs no metaclass code */

/* The child has the forking thread alone: whoever held the lock is gone, and so is Go. */
static void after_fork_in_child(void)
{
	pthread_mutex_init(&turn, NULL);
	stopped = 1;
	forked = 1;
}

static int turn_begin(PyGILState_STATE *state)
{
	pthread_mutex_lock(&turn);
	if (stopped) {
		pthread_mutex_unlock(&turn);
		return 0;
	}
	*state = PyGILState_Ensure();
	return 1;
}

static void turn_end(PyGILState_STATE state)
{
	PyErr_Clear();
	PyGILState_Release(state);
	pthread_mutex_unlock(&turn);
}

static PyObject *module_attribute(const char *module, const char *name)
{
	PyObject *object = PyImport_ImportModule(module);
	PyObject *value = object ? PyObject_GetAttrString(object, name) : NULL;

	Py_XDECREF(object);
	return value;
}

static PyObject *type_descriptor(const char *name)
{
	PyObject *dict = PyObject_GetAttrString((PyObject *)&PyType_Type, "__dict__");
	PyObject *value = dict ? PyMapping_GetItemString(dict, name) : NULL;

	Py_XDECREF(dict);
	return value;
}

int sca_host_init(int minor)
{
	if (sca_hook_init(minor) < 0)
		return -1;
	function_type = module_attribute("types", "FunctionType");
	staticmethod_type = module_attribute("builtins", "staticmethod");
	classmethod_type = module_attribute("builtins", "classmethod");
	property_type = module_attribute("builtins", "property");
	type_mro = type_descriptor("__mro__");
	type_dict = type_descriptor("__dict__");
	if (!function_type || !staticmethod_type || !classmethod_type || !property_type ||
	    !type_mro || !type_dict)
		return -1;
	pthread_atfork(NULL, NULL, after_fork_in_child);
	stopped = 0;
	return 0;
}

void sca_host_stop(void)
{
	/* A turn under way may be waiting for the GIL that this thread holds. */
	Py_BEGIN_ALLOW_THREADS
	pthread_mutex_lock(&turn);
	stopped = 1;
	pthread_mutex_unlock(&turn);
	Py_END_ALLOW_THREADS
}

int sca_host_forked(void)
{
	return forked;
}

static __attribute__((format(printf, 2, 3))) void explain(char *reason, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(reason, SCA_REASON_SIZE, format, args);
	va_end(args);
}

/* Takes the exception that is set as the reason. Only its type's name: str() may run user code. */
static enum sca_status failed(char *reason, const char *doing)
{
	PyObject *type, *value, *traceback, *name = NULL, *bytes = NULL;

	PyErr_Fetch(&type, &value, &traceback);
	if (type)
		name = PyObject_GetAttrString(type, "__name__");
	if (name)
		bytes = PyUnicode_AsUTF8String(name);
	explain(reason, "%s raised %s", doing, bytes ? PyBytes_AsString(bytes) : "an exception");
	Py_XDECREF(name);
	Py_XDECREF(bytes);
	Py_XDECREF(type);
	Py_XDECREF(value);
	Py_XDECREF(traceback);
	PyErr_Clear();
	return SCA_FAILED;
}

static int is_instance(PyObject *object, PyObject *type)
{
	return PyType_IsSubtype(Py_TYPE(object), (PyTypeObject *)type);
}

/* Looks a name up in a class and its bases. A new reference, or NULL with or without exception. */
static PyObject *class_lookup(PyObject *class, const char *name)
{
	PyObject *mro = PyObject_CallMethod(type_mro, "__get__", "O", class);
	PyObject *value = NULL;
	Py_ssize_t i;

	for (i = 0; mro && PyTuple_Check(mro) && !value && i < PyTuple_Size(mro); i++) {
		PyObject *dict =
			PyObject_CallMethod(type_dict, "__get__", "O", PyTuple_GetItem(mro, i));

		value = dict ? PyMapping_GetItemString(dict, name) : NULL;
		Py_XDECREF(dict);
		if (!value && PyErr_ExceptionMatches(PyExc_KeyError))
			PyErr_Clear();
		if (PyErr_Occurred())
			break;
	}
	Py_XDECREF(mro);
	return value;
}

/* The next wrapped thing under a decorator; NULL without exception when there is none. */
static PyObject *unwrap(PyObject *object)
{
	PyObject *inner = NULL;

	if (is_instance(object, staticmethod_type) || is_instance(object, classmethod_type)) {
		inner = PyObject_GetAttrString(object, "__func__");
	} else if (is_instance(object, property_type)) {
		inner = PyObject_GetAttrString(object, "fget");
	} else if (is_instance(object, function_type)) {
		PyObject *dict = PyObject_GetAttrString(object, "__dict__");

		if (dict && PyDict_Check(dict))
			inner = PyDict_GetItemString(dict, "__wrapped__");
		Py_XINCREF(inner);
		Py_XDECREF(dict);
	}
	return inner;
}

static const char *kind_of(PyObject *object)
{
	if (PyType_Check(object))
		return "a class";
	if (PyModule_Check(object))
		return "a module";
	if (PyCFunction_Check(object))
		return "a C function";
	return "not a Python function";
}

/* Walks from sys.modules to a Python function. Imports nothing and runs no Python code. */
static enum sca_status resolve(const char *module, const char *qualname, PyObject **function,
			       char *reason)
{
	PyObject *modules = PyImport_GetModuleDict();
	PyObject *object = modules ? PyDict_GetItemString(modules, module) : NULL;
	char path[1024], *rest = path, *part;
	int depth;

	if (!object) {
		explain(reason, "module %s is not imported", module);
		return SCA_NOT_IMPORTED;
	}
	if (!PyModule_Check(object)) {
		explain(reason, "sys.modules[\"%s\"] is not a module", module);
		return SCA_NOT_FOUND;
	}
	Py_IncRef(object);
	snprintf(path, sizeof(path), "%s", qualname);
	while ((part = strsep(&rest, "."))) {
		PyObject *next = NULL;

		if (PyModule_Check(object)) {
			next = PyDict_GetItemString(PyModule_GetDict(object), part);
			Py_XINCREF(next);
		} else if (PyType_Check(object)) {
			next = class_lookup(object, part);
		}
		Py_DECREF(object);
		object = next;
		if (!object && PyErr_Occurred())
			return failed(reason, "looking the name up");
		if (!object) {
			explain(reason, "%s has no attribute %s on the way to %s", module, part,
				qualname);
			return SCA_NOT_FOUND;
		}
	}
	for (depth = 0; depth < MAX_DEPTH; depth++) {
		PyObject *inner = unwrap(object);

		if (!inner && PyErr_Occurred()) {
			Py_DECREF(object);
			return failed(reason, "unwrapping a decorator");
		}
		if (!inner || inner == object) {
			Py_XDECREF(inner);
			break;
		}
		Py_DECREF(object);
		object = inner;
	}
	if (!is_instance(object, function_type)) {
		explain(reason, "%s:%s is %s, which has no bytecode to patch", module, qualname,
			kind_of(object));
		Py_DECREF(object);
		return SCA_NOT_FUNCTION;
	}
	*function = object;
	return SCA_OK;
}

/* Reads a bytes attribute of a code object. An attribute that the version lacks reads as empty. */
static int read_bytes(PyObject *code, const char *name, int optional, PyObject **bytes,
		      const char **data, Py_ssize_t *size)
{
	char *text;

	*bytes = PyObject_GetAttrString(code, name);
	if (!*bytes && optional) {
		PyErr_Clear();
		*data = NULL;
		*size = 0;
		return 0;
	}
	if (!*bytes || PyBytes_AsStringAndSize(*bytes, &text, size) < 0)
		return -1;
	*data = text;
	return 0;
}

static long read_int(PyObject *code, const char *name)
{
	PyObject *value = PyObject_GetAttrString(code, name);
	long number = value ? PyLong_AsLong(value) : -1;

	Py_XDECREF(value);
	return number;
}

static int read_code(struct sca_reading *r)
{
	PyObject *consts;

	if (read_bytes(r->code, "co_code", 0, &r->bytecode, &r->bytecode_data, &r->bytecode_size) ||
	    read_bytes(r->code, "co_linetable", 1, &r->linetable, &r->linetable_data,
		       &r->linetable_size) ||
	    read_bytes(r->code, "co_exceptiontable", 1, &r->exceptiontable, &r->exceptiontable_data,
		       &r->exceptiontable_size))
		return -1;
	r->stacksize = (int)read_int(r->code, "co_stacksize");
	consts = PyObject_GetAttrString(r->code, "co_consts");
	r->consts = consts ? PyTuple_Size(consts) : -1;
	Py_XDECREF(consts);
	return PyErr_Occurred() ? -1 : 0;
}

static void clear_reading(struct sca_reading *r)
{
	Py_CLEAR(r->function);
	Py_CLEAR(r->code);
	Py_CLEAR(r->bytecode);
	Py_CLEAR(r->linetable);
	Py_CLEAR(r->exceptiontable);
}

enum sca_status sca_host_read(const char *module, const char *qualname, struct sca_reading *r)
{
	PyGILState_STATE state;
	enum sca_status status;

	memset(r, 0, sizeof(*r));
	if (!turn_begin(&state))
		return SCA_STOPPED;
	status = resolve(module, qualname, &r->function, r->reason);
	if (status == SCA_OK) {
		r->code = PyObject_GetAttrString(r->function, "__code__");
		r->hook = r->code ? sca_hook_of(r->code) : NULL;
		if (r->hook) {
			Py_IncRef((PyObject *)r->hook);
			status = SCA_PATCHED;
		} else if (!r->code || read_code(r) < 0) {
			status = failed(r->reason, "reading the code object");
		}
	}
	if (status != SCA_OK)
		clear_reading(r);
	turn_end(state);
	return status;
}

void sca_host_release(struct sca_reading *r)
{
	PyGILState_STATE state;

	if (!turn_begin(&state))
		return; /* the process is ending: what is left goes with it */
	clear_reading(r);
	turn_end(state);
}

static int set_bytes(PyObject *kwargs, const char *name, const char *data, Py_ssize_t size)
{
	PyObject *bytes = PyBytes_FromStringAndSize(data, size);
	int result = bytes ? PyDict_SetItemString(kwargs, name, bytes) : -1;

	Py_XDECREF(bytes);
	return result;
}

/* Returns code.replace(...) with the hook as its last constant. */
static PyObject *build_code(const struct sca_reading *r, const struct sca_rewrite *w,
			    PyObject *hook)
{
	PyObject *kwargs = PyDict_New(), *consts = PyObject_GetAttrString(r->code, "co_consts");
	PyObject *tail = PyTuple_New(1), *longer = NULL, *stacksize = PyLong_FromLong(w->stacksize);
	PyObject *replace = PyObject_GetAttrString(r->code, "replace");
	PyObject *empty = PyTuple_New(0), *code = NULL;

	if (!kwargs || !consts || !tail || !stacksize || !replace || !empty)
		goto out;
	Py_IncRef(hook);
	if (PyTuple_SetItem(tail, 0, hook) < 0)
		goto out;
	longer = PySequence_Concat(consts, tail);
	if (!longer || PyDict_SetItemString(kwargs, "co_consts", longer) < 0 ||
	    PyDict_SetItemString(kwargs, "co_stacksize", stacksize) < 0 ||
	    set_bytes(kwargs, "co_code", w->bytecode, w->bytecode_size) < 0)
		goto out;
	if (r->linetable && set_bytes(kwargs, "co_linetable", w->linetable, w->linetable_size) < 0)
		goto out;
	if (r->exceptiontable &&
	    set_bytes(kwargs, "co_exceptiontable", w->exceptiontable, w->exceptiontable_size) < 0)
		goto out;
	code = PyObject_Call(replace, empty, kwargs);
out:
	Py_XDECREF(kwargs);
	Py_XDECREF(consts);
	Py_XDECREF(tail);
	Py_XDECREF(longer);
	Py_XDECREF(stacksize);
	Py_XDECREF(replace);
	Py_XDECREF(empty);
	return code;
}

/* Assigns function.__code__ = to, if it still is from. */
static enum sca_status swap_code(PyObject *function, PyObject *from, PyObject *to, char *reason)
{
	PyObject *now = PyObject_GetAttrString(function, "__code__");
	int same = now == from;

	Py_XDECREF(now);
	if (!same) {
		explain(reason, "the function's code was replaced by something else meanwhile");
		return SCA_CHANGED;
	}
	if (PyObject_SetAttrString(function, "__code__", to) < 0)
		return failed(reason, "assigning __code__");
	return SCA_OK;
}

enum sca_status sca_host_swap(struct sca_reading *r, const char *target,
			      const struct sca_rewrite *w, struct sca_hook **out)
{
	PyGILState_STATE state;
	enum sca_status status;
	struct sca_hook *hook;
	PyObject *callable = NULL, *patched = NULL;

	if (!turn_begin(&state))
		return SCA_STOPPED;
	hook = sca_hook_new(target, r->function, r->code);
	if (hook)
		callable = sca_hook_callable(hook);
	if (callable)
		patched = build_code(r, w, callable);
	if (patched) {
		hook->patched = patched;
		status = swap_code(r->function, r->code, patched, r->reason);
	} else {
		status = failed(r->reason, "building the patched code object");
	}
	if (status == SCA_OK) {
		*out = hook;
		sca_hook_announce_patched(hook);
	} else {
		Py_XDECREF((PyObject *)hook);
	}
	Py_XDECREF(callable);
	Py_XDECREF(patched);
	clear_reading(r);
	turn_end(state);
	return status;
}

/* The code in place is told by its hook, not its address: a freed code object's may be reused. */
static enum sca_status restore_code(PyObject *function, struct sca_hook *hook, char *reason)
{
	PyObject *now = PyObject_GetAttrString(function, "__code__");
	enum sca_status status;

	if (now && sca_hook_of(now) == hook) {
		status = swap_code(function, now, hook->original, reason);
	} else {
		explain(reason, "the function's code was replaced by something else meanwhile");
		status = SCA_CHANGED;
	}
	Py_XDECREF(now);
	return status;
}

enum sca_status sca_host_revert(struct sca_hook *hook, char reason[SCA_REASON_SIZE])
{
	PyGILState_STATE state;
	enum sca_status status = SCA_OK;
	PyObject *function;

	if (!turn_begin(&state))
		return SCA_STOPPED;
	function = PyObject_CallObject(hook->function, NULL);
	if (!function)
		status = failed(reason, "following the weak reference to the function");
	else if (function != Py_None) /* a function that is gone has nothing to revert */
		status = restore_code(function, hook, reason);
	Py_XDECREF(function);
	if (status == SCA_OK)
		sca_hook_announce_reverted(hook);
	turn_end(state);
	return status;
}

void sca_host_drop(struct sca_hook *hook)
{
	PyGILState_STATE state;

	if (!turn_begin(&state))
		return;
	Py_DECREF((PyObject *)hook);
	turn_end(state);
}

Py_ssize_t sca_host_modules(void)
{
	PyGILState_STATE state;
	Py_ssize_t size;

	if (!turn_begin(&state))
		return -1;
	size = PyDict_Size(PyImport_GetModuleDict());
	turn_end(state);
	return size;
}

uint64_t sca_host_hits(const struct sca_hook *hook)
{
	return __atomic_load_n(&hook->hits, __ATOMIC_RELAXED);
}

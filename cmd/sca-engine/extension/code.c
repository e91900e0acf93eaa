// SPDX-License-Identifier: Apache-2.0
#include "code.h"

#include "numbers.h"
#include "resolve.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static PyObject *function_type, *get_objects, *no_args;
static const char *line_table; /* the attribute that says which line an instruction belongs to */

int sca_code_init(int minor)
{
	PyObject *types = PyImport_ImportModule("types"), *gc = PyImport_ImportModule("gc");

	if (types)
		function_type = PyObject_GetAttrString(types, "FunctionType");
	if (gc)
		get_objects = PyObject_GetAttrString(gc, "get_objects");
	no_args = PyTuple_New(0);
	line_table = minor >= 10 ? "co_linetable" : "co_lnotab";
	Py_XDECREF(types);
	Py_XDECREF(gc);
	return function_type && get_objects && no_args ? 0 : -1;
}

void sca_explain(char reason[SCA_REASON_SIZE], const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(reason, SCA_REASON_SIZE, format, args);
	va_end(args);
}

enum sca_status sca_failed(char reason[SCA_REASON_SIZE], const char *doing)
{
	PyObject *type, *value, *traceback, *name = NULL, *bytes = NULL;

	PyErr_Fetch(&type, &value, &traceback);
	if (type)
		name = sca_type_name(type);
	if (name && PyUnicode_Check(name))
		bytes = PyUnicode_AsUTF8String(name);
	sca_explain(reason, "%s raised %s", doing,
		    bytes ? PyBytes_AsString(bytes) : "an exception");
	Py_XDECREF(name);
	Py_XDECREF(bytes);
	Py_XDECREF(type);
	Py_XDECREF(value);
	Py_XDECREF(traceback);
	PyErr_Clear();
	sca_number_add(SCA_N_FAILURES, 1);
	return SCA_FAILED;
}

static enum sca_status changed(char reason[SCA_REASON_SIZE])
{
	sca_explain(reason, "the function's code was replaced by something else meanwhile");
	return SCA_CHANGED;
}

static int read_bytes(PyObject *code, const char *name, PyObject **bytes, const char **data,
		      size_t *size)
{
	Py_ssize_t length;
	char *text;

	*bytes = PyObject_GetAttrString(code, name);
	if (!*bytes || PyBytes_AsStringAndSize(*bytes, &text, &length) < 0)
		return -1;
	*data = text;
	*size = length;
	return 0;
}

int sca_code_read(struct sca_reading *r)
{
	PyObject *stacksize = NULL, *consts = NULL;

	if (read_bytes(r->code, "co_code", &r->bytecode, &r->bytecode_data, &r->bytecode_size) ||
	    read_bytes(r->code, line_table, &r->linetable, &r->linetable_data, &r->linetable_size))
		return -1;
	if (read_bytes(r->code, "co_exceptiontable", &r->exceptiontable, &r->exceptiontable_data,
		       &r->exceptiontable_size)) {
		if (!PyErr_ExceptionMatches(PyExc_AttributeError))
			return -1;
		PyErr_Clear(); /* before 3.11 */
	}
	stacksize = PyObject_GetAttrString(r->code, "co_stacksize");
	consts = PyObject_GetAttrString(r->code, "co_consts");
	if (stacksize)
		r->stacksize = (int)PyLong_AsLong(stacksize);
	if (consts)
		r->consts = PyTuple_Size(consts);
	Py_XDECREF(stacksize);
	Py_XDECREF(consts);
	return PyErr_Occurred() ? -1 : 0;
}

PyObject *sca_code_original(PyObject *code)
{
	struct sca_hook *hook = sca_hook_of(code);

	return hook ? hook->original : code;
}

static int is_target(const struct sca_hook *hook)
{
	return hook && hook->mode != SCA_CARRIER;
}

/* Returns code.replace(**changes, co_consts=consts). */
static PyObject *replace_all(PyObject *code, PyObject *changes, PyObject *consts)
{
	PyObject *method = NULL, *result = NULL;

	if (PyDict_SetItemString(changes, "co_consts", consts) == 0)
		method = PyObject_GetAttrString(code, "replace");
	if (method)
		result = PyObject_Call(method, no_args, changes);
	Py_XDECREF(method);
	return result;
}

/* Returns code.replace(**changes, co_consts=consts + (last,)). */
static PyObject *replace(PyObject *code, PyObject *changes, PyObject *consts, struct sca_hook *last)
{
	PyObject *tail = PyTuple_New(1), *longer = NULL, *result = NULL;

	if (!tail)
		return NULL;
	Py_IncRef((PyObject *)last);
	if (PyTuple_SetItem(tail, 0, (PyObject *)last) == 0)
		longer = PySequence_Concat(consts, tail);
	if (longer)
		result = replace_all(code, changes, longer);
	Py_XDECREF(tail);
	Py_XDECREF(longer);
	return result;
}

/* Returns the constants of code that its original has too, perhaps replaced: without the hook. */
static PyObject *plain_consts(PyObject *code)
{
	PyObject *consts = PyObject_GetAttrString(code, "co_consts"), *head;

	if (!consts || !sca_hook_of(code))
		return consts;
	head = PyTuple_GetSlice(consts, 0, PyTuple_Size(consts) - 1);
	Py_DECREF(consts);
	return head;
}

/* Whether consts are the original's own: 1, 0, or -1 with an exception set. */
static int are_original(PyObject *consts, PyObject *original)
{
	PyObject *own = PyObject_GetAttrString(original, "co_consts");
	Py_ssize_t i, n = own ? PyTuple_Size(own) : -1;
	int same = n == PyTuple_Size(consts);

	for (i = 0; same && i < n; i++) {
		PyObject *item = PyTuple_GetItem(own, i);

		/* only code is ever replaced */
		if (Py_TYPE(item) == Py_TYPE(original))
			same = item == PyTuple_GetItem(consts, i);
	}
	Py_XDECREF(own);
	return PyErr_Occurred() ? -1 : same;
}

/* The code without a hook of its own: the original, or a carrier where constants are replaced. */
static PyObject *without_hook(PyObject *original, PyObject *consts)
{
	int same = are_original(consts, original);
	PyObject *changes, *code = NULL;
	struct sca_hook *carrier;

	if (same < 0)
		return NULL;
	if (same) {
		Py_IncRef(original);
		return original;
	}
	carrier = sca_hook_new("", SCA_CARRIER, NULL, original);
	changes = PyDict_New();
	if (carrier && changes)
		code = replace(original, changes, consts, carrier);
	if (code)
		carrier->patched = code;
	Py_XDECREF((PyObject *)carrier);
	Py_XDECREF(changes);
	return code;
}

static int set_bytes(PyObject *changes, const char *name, const char *data, size_t size)
{
	PyObject *bytes = PyBytes_FromStringAndSize(data, size);
	int result = bytes ? PyDict_SetItemString(changes, name, bytes) : -1;

	Py_XDECREF(bytes);
	return result;
}

/* The code with a hook of its own: the original's rewrite, with the constants as they are now. */
static PyObject *with_hook(const struct sca_swap *s, PyObject *original, PyObject *consts,
			   struct sca_hook *hook)
{
	PyObject *changes = PyDict_New(), *stacksize = PyLong_FromLong(s->stacksize), *code = NULL;

	if (changes && stacksize && PyDict_SetItemString(changes, "co_stacksize", stacksize) == 0 &&
	    set_bytes(changes, "co_code", s->bytecode, s->bytecode_size) == 0 &&
	    set_bytes(changes, line_table, s->linetable, s->linetable_size) == 0 &&
	    (!s->reading->exceptiontable ||
	     set_bytes(changes, "co_exceptiontable", s->exceptiontable, s->exceptiontable_size) ==
		     0))
		code = replace(original, changes, consts, hook);
	Py_XDECREF(changes);
	Py_XDECREF(stacksize);
	return code;
}

/* Returns a copy of the tuple with one item replaced. */
static PyObject *tuple_with(PyObject *tuple, Py_ssize_t at, PyObject *item)
{
	Py_ssize_t i, n = PyTuple_Size(tuple);
	PyObject *copy = PyTuple_New(n);

	for (i = 0; copy && i < n; i++) {
		PyObject *from = i == at ? item : PyTuple_GetItem(tuple, i);

		Py_IncRef(from);
		if (PyTuple_SetItem(copy, i, from) < 0)
			Py_CLEAR(copy);
	}
	return copy;
}

static void now_patched(struct sca_hook *hook, PyObject *code, int pin)
{
	hook->patched = code;
	if (pin) {
		PyObject *before = hook->pinned;

		Py_IncRef(code);
		hook->pinned = code;
		Py_XDECREF(before);
	}
}

/* Returns code with one constant replaced by another code object. */
static PyObject *with_nested(PyObject *code, Py_ssize_t at, PyObject *nested)
{
	struct sca_hook *hook = sca_hook_of(code);
	PyObject *consts = plain_consts(code), *changed = NULL, *changes = NULL, *result = NULL;

	if (consts)
		changed = tuple_with(consts, at, nested);
	if (changed && !is_target(hook)) {
		result = without_hook(sca_code_original(code), changed);
	} else if (changed) {
		changes = PyDict_New();
		if (changes)
			result = replace(code, changes, changed, hook);
		if (result)
			now_patched(hook, result, hook->pinned != NULL);
	}
	Py_XDECREF(consts);
	Py_XDECREF(changed);
	Py_XDECREF(changes);
	return result;
}

/* What becomes of the code object that a path leads to. Returns a new reference, or NULL with *status
 * and reason set or an exception. */
typedef PyObject *edit(PyObject *code, void *context, enum sca_status *status, char *reason);

static PyObject *edited(PyObject *code, const uint32_t *path, int depth, edit *edit, void *context,
			enum sca_status *status, char *reason)
{
	PyObject *consts, *nested, *inner = NULL, *result = NULL;

	if (depth == 0)
		return edit(code, context, status, reason);
	consts = PyObject_GetAttrString(code, "co_consts");
	nested = consts ? PyTuple_GetItem(consts, path[0]) : NULL;
	if (nested && Py_TYPE(nested) == Py_TYPE(code)) {
		inner = edited(nested, path + 1, depth - 1, edit, context, status, reason);
	} else if (consts) {
		PyErr_Clear();
		*status = changed(reason);
	}
	if (inner)
		result = with_nested(code, path[0], inner);
	Py_XDECREF(inner);
	Py_XDECREF(consts);
	return result;
}

/* Edits a function's code in place. */
static enum sca_status edit_function(PyObject *function, const uint32_t *path, int depth,
				     edit *edit, void *context, char *reason)
{
	PyObject *now = PyObject_GetAttrString(function, "__code__"), *code = NULL, *still = NULL;
	enum sca_status status = SCA_FAILED;

	if (now)
		code = edited(now, path, depth, edit, context, &status, reason);
	if (!code) {
		if (PyErr_Occurred())
			status = sca_failed(reason, "building the code object");
		Py_XDECREF(now);
		return status;
	}
	/* Building may have run a garbage collection, and so any code. */
	still = PyObject_GetAttrString(function, "__code__");
	if (!still) {
		status = sca_failed(reason, "reading __code__");
	} else if (still != now) {
		status = changed(reason);
	} else if (PyObject_SetAttrString(function, "__code__", code) < 0) {
		status = sca_failed(reason, "assigning __code__");
	} else {
		status = SCA_OK;
	}
	Py_XDECREF(still);
	Py_DECREF(now);
	Py_DECREF(code);
	return status;
}

static PyObject *add_hook(PyObject *code, void *context, enum sca_status *status, char *reason)
{
	struct sca_swap *s = context;
	PyObject *consts, *result = NULL;

	if (sca_code_original(code) != s->reading->code || is_target(sca_hook_of(code))) {
		*status = changed(reason);
		return NULL;
	}
	consts = plain_consts(code);
	if (consts)
		result = with_hook(s, s->reading->code, consts, s->hook);
	if (result)
		now_patched(s->hook, result, s->reading->depth > 0);
	Py_XDECREF(consts);
	return result;
}

enum sca_status sca_code_patch(struct sca_swap *s)
{
	struct sca_reading *r = s->reading;
	int nested = r->depth > 0;

	s->hook = sca_hook_new(s->target, s->mode, nested ? NULL : r->function, r->code);
	if (!s->hook)
		return sca_failed(r->reason, "making the hook");
	if (nested) {
		s->hook->outer = PyWeakref_NewRef(r->function, NULL);
		if (!s->hook->outer) {
			Py_CLEAR(s->hook);
			return sca_failed(r->reason, "making the hook");
		}
		s->hook->depth = r->depth;
		memcpy(s->hook->path, r->path, sizeof(r->path));
	}
	s->status = edit_function(r->function, r->path, r->depth, add_hook, s, r->reason);
	if (s->status == SCA_OK) {
		sca_hook_patched(s->hook);
		sca_number_add(SCA_N_PATCHES, 1);
	} else {
		Py_CLEAR(s->hook->pinned);
		Py_CLEAR(s->hook);
	}
	return s->status;
}

/* What something else made of a patched code object, without the hook: the prologue negates 0 then. */
static PyObject *with_zeros(PyObject *code, struct sca_hook *hook)
{
	PyObject *consts = PyObject_GetAttrString(code, "co_consts"), *zero = PyLong_FromLong(0);
	PyObject *changes = PyDict_New(), *result = NULL;
	Py_ssize_t i;

	for (i = 0; zero && consts && i < PyTuple_Size(consts); i++) {
		PyObject *before = consts;

		if (PyTuple_GetItem(consts, i) != (PyObject *)hook)
			continue;
		consts = tuple_with(before, i, zero);
		Py_DECREF(before);
	}
	if (consts && zero && changes)
		result = replace_all(code, changes, consts);
	Py_XDECREF(consts);
	Py_XDECREF(zero);
	Py_XDECREF(changes);
	return result;
}

/* Makes what something else made of a patched code object one of the engine's own: with the hook as last
 * constant too, and with what it is without the hook as its original. */
static PyObject *adopt(PyObject *code, void *context, enum sca_status *status, char *reason)
{
	struct sca_hook *hook = context;
	PyObject *consts, *changes = PyDict_New(), *original, *before, *result = NULL;

	if (sca_hook_within(code) != hook) {
		*status = changed(reason);
		Py_XDECREF(changes);
		return NULL;
	}
	original = with_zeros(code, hook);
	consts = PyObject_GetAttrString(code, "co_consts");
	if (original && consts && changes)
		result = replace(code, changes, consts, hook);
	if (result) {
		before = hook->original;
		Py_IncRef(original);
		hook->original = original;
		Py_DECREF(before);
		now_patched(hook, result, hook->pinned != NULL);
	}
	Py_XDECREF(original);
	Py_XDECREF(consts);
	Py_XDECREF(changes);
	return result;
}

static PyObject *remove_hook(PyObject *code, void *context, enum sca_status *status, char *reason)
{
	PyObject *consts, *result = NULL;

	if (sca_hook_of(code) != context) {
		if (sca_hook_within(code) == context)
			return with_zeros(code, context);
		*status = changed(reason);
		return NULL;
	}
	consts = plain_consts(code);
	if (consts)
		result = without_hook(sca_code_original(code), consts);
	Py_XDECREF(consts);
	return result;
}

/* Follows a weak reference. Returns a new reference, None for an object that is gone. */
static PyObject *follow(PyObject *reference)
{
	return PyObject_CallObject(reference, NULL);
}

enum sca_status sca_code_adopt(struct sca_reading *r, struct sca_hook *hook)
{
	PyObject *function = hook->function ? follow(hook->function) : NULL;
	int own = function == r->function;

	if (hook->function && !function)
		return sca_failed(r->reason, "following the weak reference to the function");
	Py_XDECREF(function);
	return own ? edit_function(function, NULL, 0, adopt, hook, r->reason) : SCA_OK;
}

enum sca_status sca_code_restore(struct sca_hook *hook, char reason[SCA_REASON_SIZE])
{
	PyObject *function = follow(hook->function ? hook->function : hook->outer);
	enum sca_status status = SCA_OK;

	if (!function)
		return sca_failed(reason, "following the weak reference to the function");
	if (function != Py_None) /* a function that is gone has nothing to revert */
		status =
			edit_function(function, hook->path, hook->depth, remove_hook, hook, reason);
	Py_DECREF(function);
	if (status == SCA_OK) {
		sca_hook_reverted(hook);
		sca_number_add(SCA_N_REVERTS, 1);
	}
	return status;
}

int sca_code_restore_function(struct sca_hook *hook)
{
	char reason[SCA_REASON_SIZE];

	return sca_code_restore(hook, reason) == SCA_OK ? 0 : -1;
}

/* Returns the code that a function should run instead of what it runs, NULL without exception where
 * that is right already. */
static PyObject *wanted_code(PyObject *code, struct sca_hook *const *hooks, size_t count)
{
	struct sca_hook *own = sca_hook_within(code);
	PyObject *original = sca_code_original(code);
	size_t i;

	for (i = 0; i < count; i++) {
		struct sca_hook *hook = hooks[i];
		enum sca_status status;
		char reason[SCA_REASON_SIZE];

		if (hook->state != SCA_IN_PLACE) {
			if (own == hook)
				return remove_hook(code, hook, &status, reason);
		} else if (hook->pinned && original == hook->original && !own) {
			Py_IncRef(hook->pinned);
			return hook->pinned;
		}
	}
	return NULL;
}

enum sca_status sca_code_walk(struct sca_hook *const *hooks, size_t count)
{
	PyObject *objects = PyObject_CallObject(get_objects, NULL);
	Py_ssize_t i, n = objects ? PyList_Size(objects) : 0;
	int failures = !objects;

	sca_number_add(SCA_N_HEAP_WALKS, 1);
	for (i = 0; i < n; i++) {
		PyObject *object = PyList_GetItem(objects, i), *code, *wanted;

		if (!object) /* the list is an object that others can find, too */
			break;
		if ((PyObject *)Py_TYPE(object) != function_type)
			continue;
		Py_IncRef(object);
		code = PyObject_GetAttrString(object, "__code__");
		wanted = code ? wanted_code(code, hooks, count) : NULL;
		if (wanted && PyObject_SetAttrString(object, "__code__", wanted) < 0)
			failures++;
		failures += PyErr_Occurred() && !wanted;
		PyErr_Clear();
		Py_XDECREF(code);
		Py_XDECREF(wanted);
		Py_DecRef(object);
	}
	Py_XDECREF(objects);
	PyErr_Clear();
	if (failures)
		sca_number_add(SCA_N_FAILURES, failures);
	return failures ? SCA_FAILED : SCA_OK;
}

// SPDX-License-Identifier: Apache-2.0
#include "hook.h"

#include <stdlib.h>
#include <string.h>

/* Semaphores let a hit skip its probe while nobody listens; bpftrace and perf raise them too. */
#define _SDT_HAS_SEMAPHORES 1
#include <sys/sdt.h>
#define SEMAPHORE(name)                                                                            \
	__extension__ volatile unsigned short name                                                 \
		__attribute__((unused, section(".probes"), visibility("hidden")))
SEMAPHORE(sca_hit_semaphore);
SEMAPHORE(sca_patched_semaphore);
SEMAPHORE(sca_reverted_semaphore);

#define SCA_MAX_TEXT 512

static PyObject *hook_type;
static struct sca_hook *hooks; /* guarded by the GIL */
static int none_is_immortal;   /* from 3.12 on (PEP 683) */

/*
 * Copies a str, cut to SCA_MAX_TEXT bytes. Returns NULL, without an exception, when there is none:
 * a caller's name is worth less than the application's undisturbed run.
 */
static char *copy_text(PyObject *str)
{
	PyObject *bytes = str && PyUnicode_Check(str) ? PyUnicode_AsUTF8String(str) : NULL;
	char *text = NULL, *copy = NULL;
	Py_ssize_t size;

	if (bytes && PyBytes_AsStringAndSize(bytes, &text, &size) == 0)
		copy = strndup(text, SCA_MAX_TEXT);
	Py_XDECREF(bytes);
	PyErr_Clear();
	return copy;
}

static char *copy_attribute(PyObject *object, const char *name)
{
	PyObject *value = PyObject_GetAttrString(object, name);
	char *copy = copy_text(value);

	Py_XDECREF(value);
	PyErr_Clear();
	return copy;
}

static void add_caller(struct sca_hook *hook, PyObject *frame)
{
	PyObject *code = PyObject_GetAttrString(frame, "f_code");
	PyObject *line = PyObject_GetAttrString(frame, "f_lineno");
	struct sca_caller caller = { 0 };
	uint32_t i;

	if (!code || !line)
		goto out;
	if (line != Py_None)
		caller.line = (uint32_t)PyLong_AsUnsignedLongMask(line);
	caller.path = copy_attribute(code, "co_filename");
	caller.symbol = copy_attribute(code, "co_qualname");
	if (!caller.symbol)
		caller.symbol = copy_attribute(code, "co_name");
	if (!caller.path || !caller.symbol)
		goto out;
	for (i = 0; i < hook->caller_count; i++) {
		struct sca_caller *known = &hook->callers[i];

		if (known->line == caller.line && strcmp(known->path, caller.path) == 0 &&
		    strcmp(known->symbol, caller.symbol) == 0)
			goto out;
	}
	hook->callers[hook->caller_count] = caller;
	/* The observer reads without the GIL: a counted caller must be a whole one. */
	__atomic_store_n(&hook->caller_count, hook->caller_count + 1, __ATOMIC_RELEASE);
	caller.path = caller.symbol = NULL;
out:
	free(caller.path);
	free(caller.symbol);
	Py_XDECREF(code);
	Py_XDECREF(line);
}

/* The hooked function's frame is the current one, since a builtin has none; its caller is next. */
static __attribute__((noinline, cold)) void record_caller(struct sca_hook *hook)
{
	PyObject *type, *value, *traceback, *frame, *back;

	if (hook->caller_count >= SCA_MAX_CALLERS)
		return;
	PyErr_Fetch(&type, &value, &traceback);
	frame = (PyObject *)PyEval_GetFrame();
	back = frame ? PyObject_GetAttrString(frame, "f_back") : NULL;
	if (back && back != Py_None) {
		if (!hook->callers)
			hook->callers = calloc(SCA_MAX_CALLERS, sizeof(*hook->callers));
		if (hook->callers)
			add_caller(hook, back);
	}
	Py_XDECREF(back);
	PyErr_Restore(type, value, traceback);
}

/* The hot path: runs at every start of a patched function. It cannot fail and touches no Go. */
static PyObject *hook_hit(PyObject *self, PyObject *unused)
{
	struct sca_hook *hook = (struct sca_hook *)self;
	/* The GIL is held, so no other thread counts now; only readers without it must see whole
	 * numbers. A locked add would cost half of all that a hit costs. */
	uint64_t hits = hook->hits + 1;

	(void)unused;
	__atomic_store_n(&hook->hits, hits, __ATOMIC_RELAXED);
	if (__builtin_expect(hits <= SCA_CALLER_HITS, 0))
		record_caller(hook);
	if (__builtin_expect(sca_hit_semaphore, 0))
		STAP_PROBE3(sca, hit, hook->target, hook->patched, hits);
	if (!none_is_immortal)
		Py_INCREF(Py_None);
	return Py_None;
}

/* METH_O, with the builtin itself as argument: the one calling convention for builtins that every
 * version from 3.8 specialises or has a fast path for. */
static PyMethodDef hit_method = { "sca_hit", hook_hit, METH_O,
				  "Count one start of the patched function." };

void sca_hook_announce_patched(struct sca_hook *hook)
{
	if (sca_patched_semaphore)
		STAP_PROBE3(sca, patched, hook->target, hook->patched, (void *)hook->original);
}

void sca_hook_announce_reverted(struct sca_hook *hook)
{
	if (sca_reverted_semaphore)
		STAP_PROBE3(sca, reverted, hook->target, hook->patched, (void *)hook->original);
}

static void hook_dealloc(PyObject *self)
{
	struct sca_hook *hook = (struct sca_hook *)self;
	PyObject *type = (PyObject *)Py_TYPE(self);
	uint32_t i;

	if (hook->prev)
		hook->prev->next = hook->next;
	else if (hooks == hook)
		hooks = hook->next;
	if (hook->next)
		hook->next->prev = hook->prev;
	hook->magic = 0; /* freed memory must not look like a hook to the observer */
	for (i = 0; i < hook->caller_count; i++) {
		free(hook->callers[i].path);
		free(hook->callers[i].symbol);
	}
	free(hook->callers);
	free(hook->target);
	Py_XDECREF(hook->original);
	Py_XDECREF(hook->function);
	PyObject_Free(self);
	Py_DecRef(type);
}

static PyObject *get_target(PyObject *self, void *closure)
{
	(void)closure;
	return PyUnicode_FromString(((struct sca_hook *)self)->target);
}

static PyObject *get_hits(PyObject *self, void *closure)
{
	(void)closure;
	return PyLong_FromUnsignedLongLong(
		__atomic_load_n(&((struct sca_hook *)self)->hits, __ATOMIC_RELAXED));
}

static PyObject *get_original(PyObject *self, void *closure)
{
	PyObject *original = ((struct sca_hook *)self)->original;

	(void)closure;
	Py_IncRef(original);
	return original;
}

static PyObject *get_callers(PyObject *self, void *closure)
{
	struct sca_hook *hook = (struct sca_hook *)self;
	PyObject *list = PyList_New(0);
	uint32_t i;

	(void)closure;
	for (i = 0; list && i < hook->caller_count; i++) {
		struct sca_caller *caller = &hook->callers[i];
		/* a name cut at the bound may end within a character, hence "replace" */
		PyObject *path =
			PyUnicode_DecodeUTF8(caller->path, strlen(caller->path), "replace");
		PyObject *symbol =
			PyUnicode_DecodeUTF8(caller->symbol, strlen(caller->symbol), "replace");
		PyObject *item =
			path && symbol ? Py_BuildValue("(OIO)", path, caller->line, symbol) : NULL;

		if (!item || PyList_Append(list, item) < 0)
			Py_CLEAR(list);
		Py_XDECREF(item);
		Py_XDECREF(path);
		Py_XDECREF(symbol);
	}
	return list;
}

static PyObject *hook_refuse_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	(void)type, (void)args, (void)kwargs;
	PyErr_SetString(PyExc_TypeError, "only the engine makes hooks");
	return NULL;
}

static PyGetSetDef hook_getset[] = {
	{ "target", get_target, NULL, "The target, as 'module:qualname'.", NULL },
	{ "hits", get_hits, NULL, "How often the patched function was started.", NULL },
	{ "original", get_original, NULL, "The code object that the patched one stands for.",
	  NULL },
	{ "callers", get_callers, NULL, "The first callers, as (path, line, symbol).", NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};

static PyType_Slot hook_slots[] = {
	{ Py_tp_dealloc, hook_dealloc },
	{ Py_tp_getset, hook_getset },
	{ Py_tp_new, hook_refuse_new },
	{ Py_tp_doc, "The hook of one patched function: its undo and its counters." },
	{ 0, NULL },
};

static PyType_Spec hook_spec = {
	.name = "sca_probe._engine.Hook",
	.basicsize = sizeof(struct sca_hook),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = hook_slots,
};

int sca_hook_init(int minor)
{
	none_is_immortal = minor >= 12;
	if (!hook_type)
		hook_type = PyType_FromSpec(&hook_spec);
	return hook_type ? 0 : -1;
}

struct sca_hook *sca_hook_new(const char *target, PyObject *function, PyObject *original)
{
	char *copy = strdup(target);
	PyObject *reference = PyWeakref_NewRef(function, NULL);
	struct sca_hook *hook = NULL;

	if (!copy)
		PyErr_NoMemory();
	else if (reference)
		hook = (struct sca_hook *)PyType_GenericAlloc((PyTypeObject *)hook_type, 0);
	if (!hook) {
		free(copy);
		Py_XDECREF(reference);
		return NULL;
	}
	hook->magic = SCA_HOOK_MAGIC;
	hook->abi = SCA_HOOK_ABI;
	hook->target = copy;
	hook->function = reference;
	Py_IncRef(original);
	hook->original = original;
	hook->next = hooks;
	if (hooks)
		hooks->prev = hook;
	hooks = hook;
	return hook;
}

PyObject *sca_hook_callable(struct sca_hook *hook)
{
	return PyCFunction_NewEx(&hit_method, (PyObject *)hook, NULL);
}

struct sca_hook *sca_hook_of(PyObject *code)
{
	PyObject *consts = PyObject_GetAttrString(code, "co_consts");
	PyObject *last = NULL, *self = NULL;

	if (consts && PyTuple_Check(consts) && PyTuple_Size(consts) > 0)
		last = PyTuple_GetItem(consts, PyTuple_Size(consts) - 1);
	/* the method's address tells this engine's builtin from every other */
	if (last && PyCFunction_Check(last) && PyCFunction_GetFunction(last) == hook_hit)
		self = PyCFunction_GetSelf(last);
	Py_XDECREF(consts);
	PyErr_Clear();
	return (struct sca_hook *)self;
}

PyObject *sca_hooks_list(void)
{
	PyObject *list = PyList_New(0);
	struct sca_hook *hook;

	for (hook = hooks; list && hook; hook = hook->next)
		if (PyList_Append(list, (PyObject *)hook) < 0)
			Py_CLEAR(list);
	return list;
}

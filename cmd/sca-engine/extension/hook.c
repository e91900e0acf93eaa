// SPDX-License-Identifier: Apache-2.0
#include "hook.h"

#include "code.h"
#include "counters.h"
#include "events.h"
#include "numbers.h"

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
/* As many frames of the engine's and ddtrace's own are passed over to find a caller. */
#define SCA_MAX_FRAMES 64

static PyObject *hook_type, *imports_type;
static PyObject *co_consts; /* the name: to make it each time takes memory, which may have run out */
static struct sca_hook *hooks; /* guarded by the GIL */
static int none_is_immortal;   /* from 3.12 on (PEP 683) */

/*
 * Copies a str, cut to SCA_MAX_TEXT bytes. Returns NULL, without an exception, when there is none:
 * a caller's name is worth less than the application's undisturbed run.
 */
static char *copy_text(PyObject *str)
{
	PyObject *bytes = NULL;
	char *text = NULL, *copy = NULL;
	Py_ssize_t size;

	if (str && PyUnicode_Check(str)) /* a file name that is no UTF-8 holds surrogates */
		bytes = PyUnicode_AsEncodedString(str, "utf-8", "backslashreplace");
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

/* Whether a file lies in the folder that an imported package was loaded from. */
static int in_package(const char *path, const char *package)
{
	/* Not PyImport_GetModuleDict(): it aborts once the interpreter, as it ends, has let its modules go. */
	PyObject *modules = PySys_GetObject("modules");
	PyObject *module =
		modules && PyDict_Check(modules) ? PyDict_GetItemString(modules, package) : NULL;
	PyObject *file = NULL;
	char *folder, *end;
	int inside = 0;

	if (module && PyModule_Check(module))
		file = PyDict_GetItemString(PyModule_GetDict(module), "__file__");
	folder = copy_text(file);
	end = folder ? strrchr(folder, '/') : NULL;
	if (end)
		inside = strncmp(path, folder, end + 1 - folder) == 0;
	free(folder);
	return inside;
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
	/* What was read above may have run any code, and so other hits. */
	if (hook->caller_count >= SCA_MAX_CALLERS)
		goto out;
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

/* Where the code that a frame runs comes from. */
enum origin {
	MACHINERY, /* ddtrace or this package: never a caller */
	LIBRARY,   /* the standard library, or installed */
	APPLICATION,
};

static enum origin origin_of(PyObject *frame)
{
	PyObject *code = PyObject_GetAttrString(frame, "f_code");
	char *path = code ? copy_attribute(code, "co_filename") : NULL;
	enum origin origin = APPLICATION;

	if (path && (in_package(path, "ddtrace") || in_package(path, "sca_probe")))
		origin = MACHINERY;
	else if (path && (strstr(path, "/site-packages/") || strstr(path, "/dist-packages/") ||
			  strncmp(path, "<frozen", 7) == 0 || in_package(path, "os")))
		origin = LIBRARY;
	free(path);
	Py_XDECREF(code);
	PyErr_Clear();
	return origin;
}

/*
 * The hooked function's frame is the current one, since a slot has none; its caller is next. Where that is
 * a library, as when a function of a package is called by another of the same, the application's frame
 * further up is recorded too: it is the one that somebody can change.
 */
static void record_caller(struct sca_hook *hook)
{
	PyObject *frame = (PyObject *)PyEval_GetFrame(); /* borrowed */
	int i, direct = 1;

	if (!frame || hook->caller_count >= SCA_MAX_CALLERS)
		return;
	if (!hook->callers)
		hook->callers = calloc(SCA_MAX_CALLERS, sizeof(*hook->callers));
	if (!hook->callers)
		return;
	Py_IncRef(frame);
	for (i = 0; i < SCA_MAX_FRAMES; i++) {
		PyObject *back = PyObject_GetAttrString(frame, "f_back");
		enum origin origin;

		Py_DecRef(frame);
		frame = back;
		if (!frame || frame == Py_None)
			break;
		origin = origin_of(frame);
		if (origin == MACHINERY || (origin == LIBRARY && !direct))
			continue;
		if (hook->caller_count < SCA_MAX_CALLERS)
			add_caller(hook, frame);
		direct = 0;
		if (origin == APPLICATION)
			break;
	}
	Py_XDECREF(frame);
}

/* What the first hits do besides counting. */
static __attribute__((noinline, cold)) void first_hits(struct sca_hook *hook)
{
	PyObject *type, *value, *traceback;

	PyErr_Fetch(&type, &value, &traceback);
	record_caller(hook);
	if (hook->mode == SCA_FIRST_HIT && hook->state == SCA_IN_PLACE) {
		hook->state = SCA_HIT;
		/* Functions that share code must be looked for: not here. */
		if (!hook->function || sca_code_restore_function(hook) < 0)
			sca_event_hit();
	}
	PyErr_Clear();
	PyErr_Restore(type, value, traceback);
}

static inline PyObject *none(void)
{
	if (!none_is_immortal)
		Py_None->ob_refcnt++; /* a call of Py_IncRef() would cost as much as all the rest */
	return Py_None;
}

/* The hot path: runs at every start of a patched function. It cannot fail and touches no Go. */
static PyObject *hook_hit(PyObject *self)
{
	struct sca_hook *hook = (struct sca_hook *)self;
	/* The GIL is held, so no other thread counts now; only readers without it must see whole
	 * numbers. A locked add would cost half of all that a hit costs. */
	uint64_t hits = *hook->hits + 1;

	__atomic_store_n(hook->hits, hits, __ATOMIC_RELAXED);
	if (__builtin_expect(hits <= SCA_CALLER_HITS, 0))
		first_hits(hook);
	if (__builtin_expect(sca_hit_semaphore, 0))
		STAP_PROBE3(sca, hit, hook->target, hook->patched, hits);
	return none();
}

/* The import system's own hook: it counts nothing. */
static PyObject *imports_hit(PyObject *self)
{
	(void)self;
	if (sca_event_imports_watched()) {
		PyObject *type, *value, *traceback;

		PyErr_Fetch(&type, &value, &traceback);
		sca_event_import_ends((PyObject *)PyEval_GetFrame());
		PyErr_Restore(type, value, traceback);
	}
	return none();
}

void sca_hook_patched(struct sca_hook *hook)
{
	hook->state = SCA_IN_PLACE;
	if (sca_patched_semaphore)
		STAP_PROBE3(sca, patched, hook->target, hook->patched, (void *)hook->original);
}

void sca_hook_reverted(struct sca_hook *hook)
{
	if (hook->state == SCA_IN_PLACE)
		hook->state = SCA_REVERTED;
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
	sca_counter_free(hook->hits);
	__atomic_fetch_sub(&sca_engine.numbers[SCA_N_HOOKS], 1, __ATOMIC_RELAXED);
	Py_XDECREF(hook->original);
	Py_XDECREF(hook->function);
	Py_XDECREF(hook->outer);
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
		__atomic_load_n(((struct sca_hook *)self)->hits, __ATOMIC_RELAXED));
}

static PyObject *get_state(PyObject *self, void *closure)
{
	static const char *const names[] = {
		[SCA_IN_PLACE] = "patched", [SCA_REVERTED] = "reverted", [SCA_HIT] = "hit"
	};

	(void)closure;
	return PyUnicode_FromString(names[((struct sca_hook *)self)->state]);
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

/* What sends functions to other processes by value (cloudpickle) pickles their constants. The hook's place
 * is taken by a number there: negating that does nothing, and the function runs as it is. */
static PyObject *hook_reduce(PyObject *self, PyObject *unused)
{
	(void)self, (void)unused;
	return Py_BuildValue("(O())", (PyObject *)&PyLong_Type);
}

static PyMethodDef hook_methods[] = {
	{ "__reduce__", hook_reduce, METH_NOARGS, "Pickled, a hook is the number 0." },
	{ NULL, NULL, 0, NULL },
};

static PyGetSetDef hook_getset[] = {
	{ "target", get_target, NULL, "The target, as 'module:qualname'.", NULL },
	{ "hits", get_hits, NULL, "How often the patched function was started.", NULL },
	{ "state", get_state, NULL, "'patched', 'reverted', or 'hit' once first-hit mode is done.",
	  NULL },
	{ "original", get_original, NULL, "The code object that the patched one stands for.",
	  NULL },
	{ "callers", get_callers, NULL, "The first callers, as (path, line, symbol).", NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};

static PyType_Slot hook_slots[] = {
	{ Py_tp_dealloc, hook_dealloc },
	{ Py_tp_getset, hook_getset },
	{ Py_tp_methods, hook_methods },
	{ Py_tp_new, hook_refuse_new },
	{ Py_nb_negative, hook_hit },
	{ Py_tp_doc, "The hook of one patched function: its undo and its counters." },
	{ 0, NULL },
};

static PyType_Slot imports_slots[] = {
	{ Py_tp_dealloc, hook_dealloc },
	{ Py_tp_new, hook_refuse_new },
	{ Py_nb_negative, imports_hit },
	{ Py_tp_doc, "The hook in the import system, by which the engine hears of imports." },
	{ 0, NULL },
};

static PyType_Spec hook_spec = {
	.name = "sca_probe._engine.Hook",
	.basicsize = sizeof(struct sca_hook),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = hook_slots,
};

static PyType_Spec imports_spec = {
	.name = "sca_probe._engine.ImportsHook",
	.basicsize = sizeof(struct sca_hook),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = imports_slots,
};

int sca_hook_init(int minor)
{
	none_is_immortal = minor >= 12;
	if (!hook_type)
		hook_type = PyType_FromSpec(&hook_spec);
	if (!imports_type)
		imports_type = PyType_FromSpec(&imports_spec);
	if (!co_consts)
		co_consts = PyUnicode_InternFromString("co_consts");
	return hook_type && imports_type && co_consts ? 0 : -1;
}

struct sca_hook *sca_hook_new(const char *target, enum sca_mode mode, PyObject *function,
			      PyObject *original)
{
	PyObject *type = mode == SCA_IMPORTS ? imports_type : hook_type;
	PyObject *reference = function ? PyWeakref_NewRef(function, NULL) : NULL;
	struct sca_hook *hook = NULL;
	char *copy = strdup(target);
	uint64_t *hits = sca_counter_new();

	if (!copy || !hits)
		PyErr_NoMemory();
	else if (reference || !function)
		hook = (struct sca_hook *)PyType_GenericAlloc((PyTypeObject *)type, 0);
	if (!hook) {
		free(copy);
		if (hits)
			sca_counter_free(hits);
		Py_XDECREF(reference);
		return NULL;
	}
	hook->magic = SCA_HOOK_MAGIC;
	hook->abi = SCA_HOOK_ABI;
	hook->hits = hits;
	hook->target = copy;
	hook->function = reference;
	hook->mode = mode;
	Py_IncRef(original);
	hook->original = original;
	hook->next = hooks;
	if (hooks)
		hooks->prev = hook;
	hooks = hook;
	sca_number_add(SCA_N_HOOKS, 1);
	return hook;
}

static int is_hook(PyObject *object)
{
	PyObject *type = (PyObject *)Py_TYPE(object);

	return type == hook_type || type == imports_type;
}

struct sca_hook *sca_hook_of(PyObject *code)
{
	PyObject *consts = PyObject_GetAttr(code, co_consts);
	struct sca_hook *hook = NULL;

	if (consts && PyTuple_Check(consts) && PyTuple_Size(consts) > 0) {
		PyObject *last = PyTuple_GetItem(consts, PyTuple_Size(consts) - 1);

		if (is_hook(last) && ((struct sca_hook *)last)->patched == code)
			hook = (struct sca_hook *)last;
	}
	Py_XDECREF(consts);
	PyErr_Clear();
	return hook;
}

struct sca_hook *sca_hook_within(PyObject *code)
{
	PyObject *consts = PyObject_GetAttr(code, co_consts);
	struct sca_hook *hook = NULL;
	Py_ssize_t i;

	for (i = 0; consts && PyTuple_Check(consts) && i < PyTuple_Size(consts) && !hook; i++) {
		PyObject *item = PyTuple_GetItem(consts, i);

		if (is_hook(item) && ((struct sca_hook *)item)->mode != SCA_CARRIER)
			hook = (struct sca_hook *)item;
	}
	Py_XDECREF(consts);
	PyErr_Clear();
	return hook;
}

void sca_hook_each(void (*visit)(struct sca_hook *hook, void *context), void *context)
{
	struct sca_hook *hook;

	for (hook = hooks; hook; hook = hook->next)
		if (hook->mode != SCA_CARRIER && hook->mode != SCA_IMPORTS)
			visit(hook, context);
}

static void append(struct sca_hook *hook, void *context)
{
	PyObject **list = context;

	if (*list && PyList_Append(*list, (PyObject *)hook) < 0)
		Py_CLEAR(*list);
}

PyObject *sca_hook_list(void)
{
	PyObject *list = PyList_New(0);

	sca_hook_each(append, &list);
	return list;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The hook: what a patched code object carries as its last constant, and negates as its first act.
 *
 * So "is it patched?", "what was it?" and "how often did it run?" are read off the function itself, from
 * Python, from a forked child, and from outside the process. The layout up to state is therefore an
 * interface: pkg/pyframes reads it from another process. Any change to it needs a new SCA_HOOK_ABI.
 *
 * Why a negation: it reaches C through one slot of the hook's type. A call would be seen by profilers
 * and monitoring as a call of the function's own, and costs several times as much.
 */
#ifndef SCA_HOOK_H
#define SCA_HOOK_H

#include "python.h"

#include "../host.h"

#define SCA_HOOK_MAGIC UINT64_C(0x6b6f6f4861637331) /* "1scaHook" in memory */
#define SCA_HOOK_ABI 2

/* Callers are looked for on the first hits only: a stack walk costs far more than a count. */
#define SCA_MAX_CALLERS 8
#define SCA_CALLER_HITS 16

struct sca_caller {
	char *path;   /* co_filename, NUL-terminated UTF-8, at most SCA_MAX_TEXT bytes */
	char *symbol; /* co_qualname, or co_name before 3.11 */
	uint32_t line;
	uint32_t reserved;
};

struct sca_hook {
	PyObject ob_base;
	uint64_t magic;
	uint32_t abi;
	uint32_t caller_count;
	uint64_t *hits;     /* in a mapping that fork() wipes: a child counts from 0 */
	char *target;       /* "module:qualname" */
	PyObject *original; /* the code object that the patched one stands for */
	PyObject *function; /* weak reference to the one function that was patched, or NULL */
	void *patched;      /* address of the patched code object, which owns this hook */
	struct sca_caller *callers; /* NULL before the first hit */
	uint32_t mode;              /* enum sca_mode */
	uint32_t state;             /* enum sca_hook_state */

	PyObject *outer; /* of a function in another: weak reference to the outermost function */
	uint32_t path[SCA_MAX_NESTING],
		depth; /* which constants lead from its code to this one's */
	uint32_t held; /* references that the reconciler holds, also if it died by fork() */
	/* The patched code of a function in another, from the swap to the walk that gives it to the
	 * functions made before: nothing else need own it. A cycle while it lasts. */
	PyObject *pinned;
	uint32_t unwalked;            /* the walk that was due failed */
	struct sca_hook *next, *prev; /* all living hooks */
};

_Static_assert(offsetof(struct sca_hook, magic) == 16, "observed from outside");
_Static_assert(offsetof(struct sca_hook, hits) == 32, "observed from outside");
_Static_assert(offsetof(struct sca_hook, original) == 48, "observed from outside");
_Static_assert(offsetof(struct sca_hook, callers) == 72, "observed from outside");
_Static_assert(offsetof(struct sca_hook, state) == 84, "observed from outside");
_Static_assert(sizeof(struct sca_caller) == 24, "observed from outside");

/* All of these need the GIL. */

/* Creates the hook types, in a CPython 3.minor. Returns -1 with an exception set. */
int sca_hook_init(int minor);
/* Returns a new hook for a function (or NULL: for every function that runs the code) whose code is
 * original; NULL with an exception set. */
struct sca_hook *sca_hook_new(const char *target, enum sca_mode mode, PyObject *function,
			      PyObject *original);
/* Returns the hook of a code object that the engine made, borrowed from it, or NULL (no exception set). */
struct sca_hook *sca_hook_of(PyObject *code);
/* Returns the hook of a target that is anywhere in the constants, also of what something else, as ddtrace does,
 * made of a code object of the engine's. Borrowed, or NULL (no exception set). */
struct sca_hook *sca_hook_within(PyObject *code);
/* Returns a new list of all living hooks that have a target. */
PyObject *sca_hook_list(void);
/* Calls visit for all living hooks that have a target. */
void sca_hook_each(void (*visit)(struct sca_hook *hook, void *context), void *context);

/* Notes and announces what became of the hook. */
void sca_hook_patched(struct sca_hook *hook);
void sca_hook_reverted(struct sca_hook *hook);

#endif

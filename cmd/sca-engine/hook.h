/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The hook: what a patched code object carries as its last constant.
 *
 * A patched code object holds a builtin whose __self__ is a struct sca_hook, so "is it patched?",
 * "what was it?" and "how often did it run?" are read off the function itself, from Python, from a
 * forked child, and from outside the process. The layout up to callers is therefore an interface:
 * pkg/pyframes reads it from another process. Any change to it needs a new SCA_HOOK_ABI.
 */
#ifndef SCA_HOOK_H
#define SCA_HOOK_H

#include "python.h"

#include <stddef.h>
#include <stdint.h>

#define SCA_HOOK_MAGIC UINT64_C(0x6b6f6f4861637331) /* "1scaHook" in memory */
#define SCA_HOOK_ABI 1

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
	uint64_t hits;
	char *target;               /* "module:qualname" */
	PyObject *original;         /* the code object that the patched one stands for */
	PyObject *function;         /* weak reference to the function that was patched */
	void *patched;              /* address of the patched code object, which owns this hook */
	struct sca_caller *callers; /* NULL before the first hit */

	struct sca_hook *next, *prev; /* all living hooks, for sca_hooks_list */
};

_Static_assert(offsetof(struct sca_hook, magic) == 16, "observed from outside");
_Static_assert(offsetof(struct sca_hook, hits) == 32, "observed from outside");
_Static_assert(offsetof(struct sca_hook, original) == 48, "observed from outside");
_Static_assert(offsetof(struct sca_hook, callers) == 72, "observed from outside");
_Static_assert(sizeof(struct sca_caller) == 24, "observed from outside");

/* All of these need the GIL. */

/* Creates the Hook type, in a CPython 3.minor. Returns -1 with an exception set. */
int sca_hook_init(int minor);
/* Returns a new hook for function, whose code is original; NULL with an exception set. */
struct sca_hook *sca_hook_new(const char *target, PyObject *function, PyObject *original);
/* Returns a new reference to the builtin that a prologue calls. */
PyObject *sca_hook_callable(struct sca_hook *hook);
/* Returns the hook of a patched code object, borrowed from it, or NULL (no exception set). */
struct sca_hook *sca_hook_of(PyObject *code);
/* Returns a new list of all living hooks. Touches no Go, so it also answers in a forked child. */
PyObject *sca_hooks_list(void);

/* Announce to the static probes sca:patched and sca:reverted. */
void sca_hook_announce_patched(struct sca_hook *hook);
void sca_hook_announce_reverted(struct sca_hook *hook);

#endif

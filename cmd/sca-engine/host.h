/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the Go side asks of the interpreter. Each call is one turn: it takes the GIL, does one short
 * thing, and gives the GIL back. No turn begins after sca_host_stop or in a forked child.
 */
#ifndef SCA_HOST_H
#define SCA_HOST_H

#include "hook.h"

enum sca_status {
	SCA_OK,
	SCA_PATCHED,      /* the function carries this engine's hook already */
	SCA_NOT_IMPORTED, /* no such module in sys.modules */
	SCA_NOT_FOUND,    /* the module or class has no such name */
	SCA_NOT_FUNCTION, /* the name is no Python function: C code, a class, a module, … */
	SCA_CHANGED,      /* the function's code is no longer what the turn before left */
	SCA_FAILED,       /* the interpreter raised: reason has the exception */
	SCA_STOPPED,      /* the interpreter is going away, or this is a forked child */
};

#define SCA_REASON_SIZE 256

/* What one turn read of a function, with references that keep the bytes alive between turns. */
struct sca_reading {
	PyObject *function, *code;
	PyObject *bytecode, *linetable, *exceptiontable; /* bytes */
	const char *bytecode_data, *linetable_data, *exceptiontable_data;
	Py_ssize_t bytecode_size, linetable_size, exceptiontable_size;
	Py_ssize_t consts;
	int stacksize;
	struct sca_hook *hook; /* with SCA_PATCHED: a reference to the hook in place */
	char reason[SCA_REASON_SIZE];
};

/* The transform's result, in the caller's memory. */
struct sca_rewrite {
	const char *bytecode, *linetable, *exceptiontable;
	Py_ssize_t bytecode_size, linetable_size, exceptiontable_size;
	int stacksize;
};

/* Called once, with the GIL, from start(). Returns -1 with an exception set. */
int sca_host_init(int minor);
/* Called with the GIL held: waits for the turn under way and lets no other begin. */
void sca_host_stop(void);
int sca_host_forked(void);

/* Finds a function and reads its code. The reading owns references: give it to sca_host_swap or
 * sca_host_release. */
enum sca_status sca_host_read(const char *module, const char *qualname,
			      struct sca_reading *reading);
void sca_host_release(struct sca_reading *reading);
/* Builds the patched code object and puts it in place. *hook becomes a reference. */
enum sca_status sca_host_swap(struct sca_reading *reading, const char *target,
			      const struct sca_rewrite *rewrite, struct sca_hook **hook);
/* Puts the original code object back. SCA_CHANGED when the function runs something else by now. */
enum sca_status sca_host_revert(struct sca_hook *hook, char reason[SCA_REASON_SIZE]);
void sca_host_drop(struct sca_hook *hook);
/* len(sys.modules), or -1 when stopped. */
Py_ssize_t sca_host_modules(void);

/* Reads a counter without the GIL. */
uint64_t sca_host_hits(const struct sca_hook *hook);

#endif

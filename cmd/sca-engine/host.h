/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The boundary between the two halves of the engine.
 *
 * The extension (extension/, C) is loaded once, lives as long as the process, survives fork() and owns
 * whatever runs on a hit or needs the GIL. The reconciler (this folder, Go) decides, in the background. A
 * Go runtime does not survive fork(): a forked child loads a fresh copy of the reconciler. So the
 * reconciler holds no state that cannot be read back from the extension, the extension calls it once
 * (scaReconcile, on a thread of the extension's that no Python code runs on), and the reconciler calls
 * back through this table.
 */
#ifndef SCA_HOST_H
#define SCA_HOST_H

#include <stddef.h>
#include <stdint.h>

typedef struct _object PyObject;

#define SCA_SOURCE_PUSH "push"
#define SCA_SOURCE_AGENT "agent"

#define SCA_REASON_SIZE 192
/* Functions within functions that one target may name: a.<locals>.b.<locals>.c has two levels. */
#define SCA_MAX_NESTING 8

enum sca_status {
	SCA_OK,
	SCA_PATCHED, /* the function carries this engine's hook already */
	SCA_NOT_IMPORTED, /* no such module in sys.modules, or it is being imported and has no such name yet */
	SCA_NOT_FOUND,    /* the module or class has no such name */
	SCA_NOT_FUNCTION, /* the name is no Python function: C code, a class, a module, … */
	SCA_CHANGED,      /* the function's code is no longer what the turn before left */
	SCA_FAILED,       /* the interpreter raised: reason has the exception */
	SCA_STOPPED,      /* the interpreter is going away */
};

enum sca_mode {
	SCA_COUNT,
	SCA_FIRST_HIT, /* the patch removes itself on the first hit */
	SCA_CARRIER,   /* no target: marks a function whose nested code constants were replaced */
	SCA_IMPORTS,   /* no target: the import system's own function, to hear of imports */
};

enum sca_hook_state {
	SCA_IN_PLACE,
	SCA_REVERTED,
	SCA_HIT, /* a first-hit hook that removed itself */
};

struct sca_hook;

/* One target as one turn read it, with references that keep the bytes alive between turns. */
struct sca_reading {
	const char *module, *qualname; /* what to read: the caller's */
	enum sca_mode mode; /* SCA_IMPORTS: the engine's own target in the import system */

	enum sca_status status;
	PyObject *function; /* of a <locals> target: the outermost function, whose constants hold code */
	PyObject *code;
	int depth;                      /* of a <locals> target: how many constants lead from the */
	uint32_t path[SCA_MAX_NESTING]; /* outermost function's code to code, and which */
	PyObject *bytecode, *linetable, *exceptiontable; /* bytes */
	const char *bytecode_data, *linetable_data, *exceptiontable_data;
	size_t bytecode_size, linetable_size, exceptiontable_size;
	size_t consts;
	int stacksize;
	struct sca_hook *hook; /* with SCA_PATCHED: a reference to the hook in place */
	char reason[SCA_REASON_SIZE];
};

/* One reading to put rewritten code in place for. */
struct sca_swap {
	struct sca_reading *reading; /* its references are given up */
	const char *target;
	enum sca_mode mode;
	const char *bytecode, *linetable, *exceptiontable;
	size_t bytecode_size, linetable_size, exceptiontable_size;
	int stacksize;

	enum sca_status status;
	struct sca_hook *hook; /* with SCA_OK: a reference */
};

struct sca_revert {
	struct sca_hook *hook;
	enum sca_status status;
	char reason[SCA_REASON_SIZE];
};

/* A hook that lives in this process, with a reference for the caller. */
struct sca_living {
	struct sca_hook *hook;
	const char *target; /* the hook's */
};

/* One configuration that Python handed over. */
struct sca_configuration {
	const char *path, *payload;
	size_t size;
	uint64_t edition; /* another one for each content of a path */
};

/* What became of a configuration, as Remote Configuration's protocol numbers it. */
enum sca_apply_state {
	SCA_UNACKNOWLEDGED = 1,
	SCA_ACKNOWLEDGED = 2,
	SCA_REFUSED = 3,
};

struct sca_applied {
	const char *path;
	uint64_t edition;
	enum sca_apply_state state;
	const char *error; /* "" without one */
};

enum sca_event_kind {
	SCA_EVENT_STOP,
	SCA_EVENT_IMPORTED, /* a watched module was imported or reloaded; the importing thread waits */
	SCA_EVENT_ASKED,    /* a thread waits for the state of every target */
	SCA_EVENT_HIT,      /* a first-hit hook was hit that cannot remove itself */
	SCA_EVENT_PUSHED, /* Python handed configurations over, or withdrew some */
};

struct sca_event {
	enum sca_event_kind kind;
	char *module; /* of SCA_EVENT_IMPORTED; valid until it is done */
	void *request;
};

/* What the engine does, as numbers: gauges first, then counters that only grow. */
enum sca_number {
	SCA_N_TARGETS,
	SCA_N_PATCHED,
	SCA_N_PENDING,
	SCA_N_UNRESOLVED,
	SCA_N_HOOKS,
	SCA_N_UPDATES,
	SCA_N_UPDATES_REFUSED,
	SCA_N_PATCHES,
	SCA_N_REVERTS,
	SCA_N_FAILURES,
	SCA_N_IMPORTS,
	SCA_N_IMPORTS_LATE,
	SCA_N_HEAP_WALKS,
	SCA_N_TURNS,
	SCA_N_TURN_NS,
	SCA_N_TURN_MAX_NS,
	SCA_N_LOG_LINES_DROPPED,
	SCA_NUMBERS,
};

/* What the reconciler may ask of the extension. Whatever takes an array works in short turns with the
 * GIL, and holds it for none of the time between. */
struct sca_host {
	/* The Go runtime is up: what its start changed in the process is put back. */
	void (*loaded)(void);
	/* The first desired set has been applied. */
	void (*ready)(void);
	/* Why the engine cannot run here; nothing else is called after it. */
	void (*refuse)(const char *reason);
	/* Why the engine cannot go on. Called by the Go runtime itself, on a thread that it cannot do
	 * without: returns never. */
	void (*halt)(const char *reason);

	void (*read)(struct sca_reading *readings, size_t count);
	void (*release)(struct sca_reading *readings, size_t count);
	void (*swap)(struct sca_swap *swaps, size_t count);
	void (*revert)(struct sca_revert *reverts, size_t count);
	void (*drop)(struct sca_hook **hooks, size_t count);
	/* Returns how many hooks live, in *living (to be freed); -1 when stopped. A hook comes with the
	 * reference that a reconciler before held, if one did. */
	ptrdiff_t (*living)(struct sca_living **living);
	/* Without the GIL, of a hook that the caller holds a reference to. */
	enum sca_hook_state (*state)(const struct sca_hook *hook);
	enum sca_mode (*mode)(const struct sca_hook *hook);

	/* The modules whose import is an event. */
	void (*watch)(const char *const *modules, size_t count);
	/* Waits for an event. */
	void (*next)(struct sca_event *event);
	/* The state of every target as JSON, of SCA_EVENT_ASKED, before it is done. */
	void (*answer)(struct sca_event *event, const char *json, size_t size);
	void (*done)(struct sca_event *event);

	/* Where Python is the source: returns how many configurations there are, in *list, one block to be
	 * freed; -1 when stopped, -2 when memory ran out. */
	ptrdiff_t (*configurations)(struct sca_configuration **list);
	/* What became of them. One that has another content by now is left alone. */
	void (*applied)(struct sca_applied *applied, size_t count);

	/* Writes a line to the program's standard error. */
	void (*log)(const char *line, size_t size);
	uint64_t *numbers; /* SCA_NUMBERS of them; atomic adds and stores only */

	/* What the interpreter is, and where Remote Configuration comes from: SCA_SOURCE_PUSH, SCA_SOURCE_AGENT
	 * or the absolute path of a file or folder. */
	int major, minor, magic;
	const char *source;
};

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What application threads tell the reconciler: that a watched module was imported, that somebody asks for
 * the state of the targets, that a first-hit hook needs help to remove itself, and that Python handed
 * configurations over.
 *
 * The thread that imports waits, without the GIL and for a bounded time, until the module's targets are
 * patched: the first call after the import statement counts. The thread that asks waits likewise, longer.
 */
#ifndef SCA_EVENTS_H
#define SCA_EVENTS_H

#include "hook.h"

/* With the GIL. The set of watched modules is replaced. */
int sca_event_watch(const char *const *modules, size_t count);
int sca_event_imports_watched(void);
/* Called at the start of _ModuleLockManager.__exit__ (Lib/importlib/_bootstrap.py), whose frame is given:
 * the module is complete, and its importer still holds the module's lock. */
void sca_event_import_ends(PyObject *frame);
/* Asks for the state of every target. Returns the answer, JSON to be freed: of no target once events have
 * ended, NULL when none came. */
char *sca_event_ask(void);
void sca_event_hit(void);
void sca_event_pushed(void);

/* Without the GIL. */
void sca_event_next(struct sca_event *event);
void sca_event_answer(struct sca_event *event, const char *json, size_t size);
void sca_event_done(struct sca_event *event);
/* Waits for an event or the time in ns; returns 0 when events ended. */
int sca_event_wait(uint64_t ns);
/* No event comes any more, and nobody waits for one to be handled. */
void sca_events_end(void);
/* Events are handled from now on. Also in a forked child: what its parent had queued is dropped. */
void sca_events_begin(void);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a target's name to its function. Nothing is imported and no Python code runs: dictionaries, slots
 * and C descriptors are read, never attributes as such, so neither __getattr__ nor a property, a lazy
 * module or a metaclass has a say.
 */
#ifndef SCA_RESOLVE_H
#define SCA_RESOLVE_H

#include "hook.h"

int sca_resolve_init(void);
/* Returns a class's __name__ as a new reference, or NULL with an exception set. */
PyObject *sca_type_name(PyObject *class);

/*
 * Sets reading's function, code, depth and path, as new references, or says in its reason why not.
 * With an internal target, the engine's own in the import system is meant.
 */
enum sca_status sca_resolve(struct sca_reading *reading, int internal);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The configurations that Python hands over, where Python is the source of Remote Configuration.
 *
 * The extension keeps them, and what became of each: the reconciler reads all of them whenever one has
 * changed, and so does the reconciler of a forked child, which inherits them. All of these need the GIL.
 */
#ifndef SCA_CONFIGURATIONS_H
#define SCA_CONFIGURATIONS_H

#include "python.h"

#include "../host.h"

/* Takes a list of (path, payload) with the payload bytes, or None for a withdrawn configuration. Either
 * all of it is taken or, with -1 and an exception set, nothing. */
int sca_configurations_push(PyObject *changes);
/* Returns a new list of (path, apply state, error) for each configuration that there is. */
PyObject *sca_configurations_states(void);
/* In a forked child nobody has acted on any of them. */
void sca_configurations_forked(void);

ptrdiff_t sca_host_configurations(struct sca_configuration **list);
void sca_host_applied(struct sca_applied *applied, size_t count);

#endif

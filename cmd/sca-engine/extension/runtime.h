/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The reconciler's life in the process. Its file is data in the engine's own; it is loaded on a thread
 * that is the engine's, from a copy that exists in memory only, so that each forked child can load one of
 * its own (a Go runtime does not survive fork(), and the dynamic loader loads one file once).
 */
#ifndef SCA_RUNTIME_H
#define SCA_RUNTIME_H

#include "../host.h"

/* Starts the engine's thread, once; source is where Remote Configuration comes from (host.h). With the GIL, which
 * is given up while the first desired set is applied. Returns -1 with an exception set. */
int sca_runtime_start(const char *source, int major, int minor, int magic);
/* With the GIL: no patch or revert begins any more. */
void sca_runtime_stop(void);
/* With the GIL, in a forked child where Python runs on: starts the child's own thread, once. */
void sca_runtime_child(void);

/* Copies why the engine was refused or halted, "" when it was not. */
void sca_runtime_reason(char reason[SCA_REASON_SIZE]);

#endif

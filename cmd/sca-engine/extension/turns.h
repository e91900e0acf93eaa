/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Turns with the GIL. A turn takes the GIL, does a little, and gives the GIL back, so that no thread of the
 * application waits longer for it than for any other thread. No turn begins once the interpreter is going
 * away.
 *
 * One thread has all turns. It has the program's descriptors, which the reconciler's threads have not
 * (descriptors.h): what is freed in a turn may close its own.
 */
#ifndef SCA_TURNS_H
#define SCA_TURNS_H

#include "hook.h"

/* What the thread that has the turns does: the work that others give it, as long as the process lives. */
void sca_turns_serve(void);
/* Gives work to that thread and waits until it is done. */
void sca_turns_run(void (*work)(void *context), void *context);

/* Calls step for each item, in as many turns as it takes; stop, if there is one, for each item that no turn came to. The
 * process is ending then: what is left goes with it. */
void sca_in_turns(void *array, size_t count, void (*step)(void *array, size_t i),
		  void (*stop)(void *array, size_t i));

/* Turns may begin. In a forked child too: whoever had a turn is gone. */
void sca_turns_begin(void);
/* Called with the GIL held: waits for the turn under way and lets no other begin. */
void sca_turns_end(void);

void sca_host_read(struct sca_reading *readings, size_t count);
void sca_host_release(struct sca_reading *readings, size_t count);
void sca_host_swap(struct sca_swap *swaps, size_t count);
void sca_host_revert(struct sca_revert *reverts, size_t count);
void sca_host_drop(struct sca_hook **hooks, size_t count);
ptrdiff_t sca_host_living(struct sca_living **living);
enum sca_hook_state sca_host_state(const struct sca_hook *hook);
enum sca_mode sca_host_mode(const struct sca_hook *hook);
void sca_host_watch(const char *const *modules, size_t count);
void sca_host_log(const char *line, size_t size);

#endif

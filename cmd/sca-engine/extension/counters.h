/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where hits are counted: in anonymous memory that fork() wipes, so that a forked child counts from 0
 * without a visit to every hook, which would copy their pages one by one.
 */
#ifndef SCA_COUNTERS_H
#define SCA_COUNTERS_H

#include <stdint.h>

/* Returns a counter that reads 0, or NULL when there is no memory. Needs the GIL. */
uint64_t *sca_counter_new(void);
void sca_counter_free(uint64_t *counter);

#endif

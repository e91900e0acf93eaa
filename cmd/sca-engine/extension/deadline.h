/* SPDX-License-Identifier: Apache-2.0 */
/* Waiting until a deadline, by a clock that nobody sets. */
#ifndef SCA_DEADLINE_H
#define SCA_DEADLINE_H

#include <pthread.h>
#include <stdint.h>
#include <time.h>

/* Makes a condition whose pthread_cond_timedwait() takes deadlines of sca_deadline(). */
static inline void sca_deadline_cond(pthread_cond_t *condition)
{
	pthread_condattr_t monotonic;

	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(condition, &monotonic);
	pthread_condattr_destroy(&monotonic);
}

static inline struct timespec sca_deadline(uint64_t ns)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	ns += t.tv_nsec;
	t.tv_sec += ns / 1000000000;
	t.tv_nsec = ns % 1000000000;
	return t;
}

#endif

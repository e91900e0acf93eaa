/* SPDX-License-Identifier: Apache-2.0 */
/* What the engine does, as numbers, readable in the process and from outside it. */
#ifndef SCA_NUMBERS_H
#define SCA_NUMBERS_H

#include "../host.h"

#define SCA_ENGINE_MAGIC UINT64_C(0x656e69676e456173) /* "saEngine" in memory */
#define SCA_ENGINE_ABI 1

enum sca_engine_state {
	SCA_ENGINE_OFF,
	SCA_ENGINE_STARTING,
	SCA_ENGINE_RUNNING,
	SCA_ENGINE_REFUSED,
	SCA_ENGINE_STOPPED,
	SCA_ENGINE_HALTED, /* it ran, and cannot go on: its patches stay as they are */
};

/* The symbol sca_engine of the engine's file. The observer reads it: a change needs a new ABI. */
struct sca_engine {
	uint64_t magic;
	uint32_t abi;
	uint32_t state; /* enum sca_engine_state */
	uint32_t forks; /* forks between the process that started the engine and this one */
	uint32_t count; /* SCA_NUMBERS */
	uint64_t numbers[SCA_NUMBERS];
};

extern struct sca_engine sca_engine;

static inline void sca_number_add(enum sca_number number, uint64_t n)
{
	__atomic_fetch_add(&sca_engine.numbers[number], n, __ATOMIC_RELAXED);
}

/* Names for Python, in the order of enum sca_number. */
extern const char *const sca_number_names[SCA_NUMBERS];
extern const char *const sca_engine_states[];

#endif

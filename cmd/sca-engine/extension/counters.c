// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "counters.h"

#include <stddef.h>
#include <string.h>
#include <sys/mman.h>

#define SLAB_SIZE 65536

/* The next free counter of each is kept outside the slab: a wiped list would be lost. */
static uint64_t *slab;
static size_t used = SLAB_SIZE / sizeof(uint64_t);

/* Counters given back, to be used again; bounded by the most hooks that ever lived at once. */
static uint64_t **spare;
static size_t spares, spare_capacity;

static void *grow(void *old, size_t old_size, size_t size)
{
	void *memory;

	if (old)
		memory = mremap(old, old_size, size, MREMAP_MAYMOVE);
	else
		memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			      0);
	return memory == MAP_FAILED ? NULL : memory;
}

uint64_t *sca_counter_new(void)
{
	if (spares > 0)
		return spare[--spares];
	if (used == SLAB_SIZE / sizeof(uint64_t)) {
		uint64_t *fresh = grow(NULL, 0, SLAB_SIZE);

		if (!fresh)
			return NULL;
		/* Linux 4.14; before it a child's counts include what its parent had counted. */
		madvise(fresh, SLAB_SIZE, MADV_WIPEONFORK);
		slab = fresh;
		used = 0;
	}
	return &slab[used++];
}

void sca_counter_free(uint64_t *counter)
{
	if (spares == spare_capacity) {
		size_t size = spare_capacity * sizeof(*spare);
		uint64_t **more = grow(spare, size, size ? 2 * size : SLAB_SIZE);

		if (!more)
			return; /* eight bytes that are not used again */
		spare = more;
		spare_capacity = (size ? 2 * size : SLAB_SIZE) / sizeof(*spare);
	}
	*counter = 0;
	spare[spares++] = counter;
}

// SPDX-License-Identifier: Apache-2.0
#include "turns.h"

#include "code.h"
#include "events.h"
#include "numbers.h"
#include "resolve.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The reconciler's table (../host.h), as far as it works in turns. */

static void release_reading(struct sca_reading *r)
{
	Py_CLEAR(r->function);
	Py_CLEAR(r->code);
	Py_CLEAR(r->bytecode);
	Py_CLEAR(r->linetable);
	Py_CLEAR(r->exceptiontable);
}

/* The one walk for all hooks of functions in functions. */
struct walk {
	struct sca_hook **hooks;
	size_t count;
};

static void walk_one(void *array, size_t i)
{
	struct walk *walk = array;

	int failed = sca_code_walk(walk->hooks, walk->count) != SCA_OK;

	for (i = 0; i < walk->count; i++) {
		walk->hooks[i]->unwalked = failed;
		if (!failed)
			Py_CLEAR(walk->hooks[i]->pinned);
	}
}

static void walk_for(struct walk *walk)
{
	if (walk->count > 0)
		sca_in_turns(walk, 1, walk_one, NULL);
}

/* Adds a hook to a walk; without memory for the list it gets a walk of its own. */
static void walk_also(struct walk *walk, struct sca_hook *hook)
{
	struct walk alone = { .hooks = &hook, .count = 1 };

	if (walk->hooks)
		walk->hooks[walk->count++] = hook;
	else
		walk_for(&alone);
}

static void read_one(void *array, size_t i)
{
	struct sca_reading *r = (struct sca_reading *)array + i;
	struct sca_hook *hook;

	r->status = sca_resolve(r, r->mode == SCA_IMPORTS);
	if (r->status == SCA_OK) {
		hook = sca_hook_within(r->code);
		if (hook && sca_hook_of(r->code) != hook)
			r->status = sca_code_adopt(r, hook);
	}
	if (r->status == SCA_OK) {
		if (hook) {
			Py_IncRef((PyObject *)hook);
			hook->held++;
			r->hook = hook;
			r->status = SCA_PATCHED;
		} else {
			PyObject *original = sca_code_original(r->code);

			Py_IncRef(original);
			Py_DECREF(r->code);
			r->code = original;
			if (sca_code_read(r) < 0)
				r->status = sca_failed(r->reason, "reading the code object");
		}
	}
	if (r->status != SCA_OK)
		release_reading(r);
}

static void stop_one_reading(void *array, size_t i)
{
	((struct sca_reading *)array + i)->status = SCA_STOPPED;
}

void sca_host_read(struct sca_reading *readings, size_t count)
{
	struct walk walk = { .hooks = calloc(count, sizeof(*walk.hooks)) };
	size_t i;

	sca_in_turns(readings, count, read_one, stop_one_reading);
	for (i = 0; i < count; i++)
		if (readings[i].hook && readings[i].hook->unwalked)
			walk_also(&walk, readings[i].hook);
	walk_for(&walk);
	free(walk.hooks);
}

static void release_one(void *array, size_t i)
{
	release_reading((struct sca_reading *)array + i);
}

void sca_host_release(struct sca_reading *readings, size_t count)
{
	sca_in_turns(readings, count, release_one, NULL);
}

static void swap_one(void *array, size_t i)
{
	struct sca_swap *s = (struct sca_swap *)array + i;

	s->status = sca_code_patch(s);
	if (s->status == SCA_OK)
		s->hook->held = 1;
	release_reading(s->reading);
}

static void stop_one_swap(void *array, size_t i)
{
	((struct sca_swap *)array + i)->status = SCA_STOPPED;
}

void sca_host_swap(struct sca_swap *swaps, size_t count)
{
	struct walk walk = { .hooks = calloc(count, sizeof(*walk.hooks)) };
	size_t i;

	sca_in_turns(swaps, count, swap_one, stop_one_swap);
	for (i = 0; i < count; i++)
		if (swaps[i].status == SCA_OK && swaps[i].hook->outer)
			walk_also(&walk, swaps[i].hook);
	walk_for(&walk);
	free(walk.hooks);
}

static void revert_one(void *array, size_t i)
{
	struct sca_revert *r = (struct sca_revert *)array + i;

	r->status = sca_code_restore(r->hook, r->reason);
	/* Other functions may still run it: those made earlier, where it is one in another; and where something
	 * else gave this one a wrapper's code, the one that the wrapper calls. */
	if ((r->hook->outer || r->status == SCA_CHANGED) && r->hook->state == SCA_IN_PLACE)
		r->hook->state = SCA_REVERTED;
}

static void stop_one_revert(void *array, size_t i)
{
	((struct sca_revert *)array + i)->status = SCA_STOPPED;
}

void sca_host_revert(struct sca_revert *reverts, size_t count)
{
	struct walk walk = { .hooks = calloc(count, sizeof(*walk.hooks)) };
	size_t i;

	sca_in_turns(reverts, count, revert_one, stop_one_revert);
	for (i = 0; i < count; i++)
		if ((reverts[i].hook->outer && reverts[i].status != SCA_STOPPED) ||
		    reverts[i].status == SCA_CHANGED)
			walk_also(&walk, reverts[i].hook);
	walk_for(&walk);
	free(walk.hooks);
	for (i = 0; i < count; i++) {
		if (!reverts[i].hook->unwalked || reverts[i].status == SCA_STOPPED)
			continue;
		reverts[i].status = SCA_FAILED;
		sca_explain(reverts[i].reason, "looking for functions that share the code failed");
	}
}

static void drop_one(void *array, size_t i)
{
	struct sca_hook *hook = ((struct sca_hook **)array)[i];

	hook->held--;
	Py_DECREF((PyObject *)hook);
}

void sca_host_drop(struct sca_hook **hooks, size_t count)
{
	sca_in_turns(hooks, count, drop_one, NULL);
}

struct living {
	struct sca_living *list;
	ptrdiff_t count;
	size_t capacity;
};

static void add_living(struct sca_hook *hook, void *context)
{
	struct living *living = context;

	if ((size_t)living->count == living->capacity) {
		size_t capacity = living->capacity ? 2 * living->capacity : 64;
		struct sca_living *list = realloc(living->list, capacity * sizeof(*list));

		if (!list)
			return;
		living->list = list;
		living->capacity = capacity;
	}
	if (hook->held == 0)
		Py_IncRef((PyObject *)hook);
	for (; hook->held > 1; hook->held--) /* of several targets that named one function */
		Py_DecRef((PyObject *)hook);
	hook->held = 1;
	living->list[living->count++] = (struct sca_living){ hook, hook->target };
}

static void list_living(void *array, size_t i)
{
	(void)i;
	((struct living *)array)->count = 0;
	sca_hook_each(add_living, array);
}

static void stop_living(void *array, size_t i)
{
	(void)i;
	((struct living *)array)->count = -1;
}

ptrdiff_t sca_host_living(struct sca_living **list)
{
	struct living living = { 0 };

	sca_in_turns(&living, 1, list_living, stop_living);
	*list = living.list;
	return living.count;
}

enum sca_hook_state sca_host_state(const struct sca_hook *hook)
{
	return __atomic_load_n(&hook->state, __ATOMIC_RELAXED);
}

enum sca_mode sca_host_mode(const struct sca_hook *hook)
{
	return hook->mode;
}

struct watch {
	const char *const *modules;
	size_t count;
};

static void watch_one(void *array, size_t i)
{
	struct watch *watch = array;

	(void)i;
	if (sca_event_watch(watch->modules, watch->count) < 0)
		sca_number_add(SCA_N_FAILURES, 1);
}

void sca_host_watch(const char *const *modules, size_t count)
{
	struct watch watch = { modules, count };

	sca_in_turns(&watch, 1, watch_one, NULL);
}

struct line {
	const char *text;
	size_t size;
};

static void write_line(void *context)
{
	const struct line *line = context;
	ssize_t written = write(STDERR_FILENO, line->text, line->size);

	(void)written; /* there is nobody to tell */
}

void sca_host_log(const char *text, size_t size)
{
	struct line line = { text, size };

	sca_turns_run(write_line, &line);
}

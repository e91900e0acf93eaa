// SPDX-License-Identifier: Apache-2.0
#include "configurations.h"

#include "events.h"
#include "turns.h"

#include <stdlib.h>
#include <string.h>

/* As many as the reconciler takes (rc.MaxConfigurations), and as much as a child may have to be given. */
#define MAX_CONFIGURATIONS 100
#define MAX_BYTES (32 << 20)
#define MAX_PATH_BYTES 1024

struct kept {
	char *path;
	PyObject *payload; /* bytes */
	uint64_t edition;  /* tells contents of one path apart */
	enum sca_apply_state state;
	char error[SCA_REASON_SIZE];
};

static struct kept kept[MAX_CONFIGURATIONS]; /* guarded by the GIL, as what follows */
static size_t kept_count;
static uint64_t editions;

static struct kept *find(const char *path)
{
	size_t i;

	for (i = 0; i < kept_count; i++)
		if (strcmp(kept[i].path, path) == 0)
			return &kept[i];
	return NULL;
}

/* The path of a change as UTF-8, and its payload: borrowed from it. Returns -1 with an exception set. */
static int parse(PyObject *change, const char **path, PyObject **payload)
{
	Py_ssize_t size;

	if (!PyTuple_Check(change)) {
		PyErr_SetString(PyExc_TypeError, "a change is a tuple (path, payload)");
		return -1;
	}
	if (!PyArg_ParseTuple(change, "s#O:push", path, &size, payload))
		return -1;
	if (size == 0 || size > MAX_PATH_BYTES || strlen(*path) != (size_t)size) {
		PyErr_Format(PyExc_ValueError, "a path of %zd bytes; the limit is %d, without NUL",
			     size, MAX_PATH_BYTES);
		return -1;
	}
	if (*payload != Py_None && !PyBytes_Check(*payload)) {
		PyErr_SetString(PyExc_TypeError, "a payload is bytes, or None when withdrawn");
		return -1;
	}
	return 0;
}

static void withdraw(struct kept *which)
{
	free(which->path);
	Py_DECREF(which->payload);
	*which = kept[--kept_count];
}

static int same_bytes(PyObject *a, PyObject *b)
{
	return PyBytes_Size(a) == PyBytes_Size(b) &&
	       memcmp(PyBytes_AsString(a), PyBytes_AsString(b), PyBytes_Size(a)) == 0;
}

static int put(const char *path, PyObject *payload)
{
	struct kept *old = find(path);
	char *copy;

	if (payload == Py_None) {
		if (old)
			withdraw(old);
		return old != NULL;
	}
	if (old && same_bytes(old->payload, payload))
		return 0;
	if (!old) {
		copy = strdup(path);
		if (!copy)
			return 0;
		old = &kept[kept_count++];
		*old = (struct kept){ .path = copy };
	}
	Py_XDECREF(old->payload);
	Py_IncRef(payload);
	old->payload = payload;
	old->edition = ++editions;
	old->state = SCA_UNACKNOWLEDGED;
	old->error[0] = 0;
	return 1;
}

int sca_configurations_push(PyObject *changes)
{
	size_t count = kept_count, bytes = 0, i;
	Py_ssize_t n = PyList_Size(changes), at;
	int changed = 0;

	if (n < 0)
		return -1;
	for (i = 0; i < kept_count; i++)
		bytes += PyBytes_Size(kept[i].payload);
	for (at = 0; at < n; at++) {
		const char *path;
		PyObject *payload;

		if (parse(PyList_GetItem(changes, at), &path, &payload) < 0)
			return -1;
		if (payload == Py_None)
			continue;
		/* What is withdrawn or replaced by the same call is counted still: it is kept simple. */
		bytes += PyBytes_Size(payload);
		count += !find(path);
	}
	if (count > MAX_CONFIGURATIONS || bytes > MAX_BYTES) {
		PyErr_Format(
			PyExc_ValueError,
			"%zu configurations of %zu bytes in all; the limits are %d and %d bytes",
			count, bytes, MAX_CONFIGURATIONS, MAX_BYTES);
		return -1;
	}
	for (at = 0; at < n; at++) {
		const char *path;
		PyObject *payload;

		if (parse(PyList_GetItem(changes, at), &path, &payload) == 0)
			changed |= put(path, payload);
	}
	if (changed)
		sca_event_pushed();
	return PyErr_Occurred() ? -1 : 0;
}

PyObject *sca_configurations_states(void)
{
	PyObject *list = PyList_New(0);
	size_t i;

	for (i = 0; list && i < kept_count; i++) {
		/* an error that was cut may end within a character */
		PyObject *error =
			PyUnicode_DecodeUTF8(kept[i].error, strlen(kept[i].error), "replace");
		PyObject *item =
			error ? Py_BuildValue("(siO)", kept[i].path, (int)kept[i].state, error) :
				NULL;

		if (!item || PyList_Append(list, item) < 0)
			Py_CLEAR(list);
		Py_XDECREF(item);
		Py_XDECREF(error);
	}
	return list;
}

void sca_configurations_forked(void)
{
	size_t i;

	for (i = 0; i < kept_count; i++) {
		kept[i].state = SCA_UNACKNOWLEDGED;
		kept[i].error[0] = 0;
	}
}

struct copying {
	struct sca_configuration *list;
	ptrdiff_t count;
};

/* All in one block: the list, then the texts. */
static void copy_all(void *array, size_t unused)
{
	struct copying *copying = array;
	size_t size = kept_count * sizeof(*copying->list), i;
	char *at;

	(void)unused;
	for (i = 0; i < kept_count; i++)
		size += strlen(kept[i].path) + 1 + PyBytes_Size(kept[i].payload);
	copying->list = malloc(size ? size : 1);
	if (!copying->list) {
		copying->count = -2;
		return;
	}
	at = (char *)(copying->list + kept_count);
	for (i = 0; i < kept_count; i++) {
		struct sca_configuration *c = &copying->list[i];

		*c = (struct sca_configuration){
			.path = at,
			.edition = kept[i].edition,
			.size = PyBytes_Size(kept[i].payload),
		};
		at = stpcpy(at, kept[i].path) + 1;
		c->payload = at;
		at = mempcpy(at, PyBytes_AsString(kept[i].payload), c->size);
	}
	copying->count = kept_count;
}

static void stop_copying(void *array, size_t unused)
{
	(void)unused;
	((struct copying *)array)->count = -1;
}

ptrdiff_t sca_host_configurations(struct sca_configuration **list)
{
	struct copying copying = { 0 };

	sca_in_turns(&copying, 1, copy_all, stop_copying);
	*list = copying.list;
	return copying.count;
}

static void note_one(void *array, size_t i)
{
	struct sca_applied *applied = (struct sca_applied *)array + i;
	struct kept *which = find(applied->path);

	if (!which || which->edition != applied->edition)
		return; /* overtaken */
	which->state = applied->state;
	strncpy(which->error, applied->error, sizeof(which->error) - 1);
}

void sca_host_applied(struct sca_applied *applied, size_t count)
{
	sca_in_turns(applied, count, note_one, NULL);
}

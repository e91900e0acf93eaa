// SPDX-License-Identifier: Apache-2.0
#include "events.h"

#include "deadline.h"
#include "numbers.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Far more than patching takes (0.1 ms), also where the engine's threads wait for a processor a quarter of a second. */
#define IMPORT_WAIT_NS 1000000000
/* Who asks has nothing else to do, and wants the answer. */
#define ASK_WAIT_NS UINT64_C(10000000000)
/* Threads that may wait at once; one more goes on without. */
#define MAX_REQUESTS 64

struct request {
	enum sca_event_kind kind;
	char module[512]; /* no target is longer */
	char *answer;     /* to SCA_EVENT_ASKED */
	int handled;      /* or given up on by the thread that waited: the other one frees it */
	struct request *next;
};

static pthread_mutex_t lock;
static pthread_cond_t arrived, handled;
static struct request *first, **last;
static int requests, hit, pushed, open_;

static PyObject *watched; /* set of str; guarded by the GIL */

void sca_events_begin(void)
{
	pthread_mutex_init(&lock, NULL);
	sca_deadline_cond(&arrived);
	sca_deadline_cond(&handled);
	first = NULL;
	last = &first;
	requests = hit = pushed = 0;
	open_ = 1;
}

void sca_events_end(void)
{
	pthread_mutex_lock(&lock);
	open_ = 0;
	pthread_cond_broadcast(&arrived);
	pthread_cond_broadcast(&handled);
	pthread_mutex_unlock(&lock);
}

int sca_event_watch(const char *const *modules, size_t count)
{
	PyObject *set = PySet_New(NULL), *old = watched;
	size_t i;

	for (i = 0; set && i < count; i++) {
		PyObject *name = PyUnicode_FromString(modules[i]);

		if (!name || PySet_Add(set, name) < 0)
			Py_CLEAR(set);
		Py_XDECREF(name);
	}
	if (!set)
		return -1;
	watched = set;
	Py_XDECREF(old);
	return 0;
}

int sca_event_imports_watched(void)
{
	return watched && PySet_Size(watched) > 0;
}

/* Posts a request and waits until it is handled, or nothing is any more. The calling thread holds the GIL,
 * and not while it waits. Returns 0 when it waited in vain. *answer is to be freed, and NULL without one. */
static int post(enum sca_event_kind kind, const char *module, uint64_t ns, char **answer)
{
	struct request *request = calloc(1, sizeof(*request));
	struct timespec deadline = sca_deadline(ns);
	int late = 0;

	*answer = NULL;
	if (!request)
		return 0;
	request->kind = kind;
	strncpy(request->module, module, sizeof(request->module) - 1);
	Py_BEGIN_ALLOW_THREADS
	pthread_mutex_lock(&lock);
	if (!open_ || requests >= MAX_REQUESTS) {
		free(request);
		late = open_;
	} else {
		*last = request;
		last = &request->next;
		requests++;
		pthread_cond_signal(&arrived);
		while (open_ && !request->handled && !late)
			late = pthread_cond_timedwait(&handled, &lock, &deadline) == ETIMEDOUT;
		if (request->handled) {
			*answer = request->answer;
			free(request);
			late = 0;
		} else {
			request->handled = 1;
		}
	}
	pthread_mutex_unlock(&lock);
	Py_END_ALLOW_THREADS
	return !late;
}

char *sca_event_ask(void)
{
	char *answer;

	if (post(SCA_EVENT_ASKED, "", ASK_WAIT_NS, &answer) && !answer && !open_)
		return strdup("[]");
	return answer;
}

void sca_event_answer(struct sca_event *event, const char *json, size_t size)
{
	struct request *request = event->request;

	if (request && !request->answer)
		request->answer = strndup(json, size);
}

void sca_event_import_ends(PyObject *frame)
{
	PyObject *locals = frame ? PyObject_GetAttrString(frame, "f_locals") : NULL;
	PyObject *manager = locals ? PyMapping_GetItemString(locals, "self") : NULL;
	PyObject *name = manager ? PyObject_GetAttrString(manager, "_name") : NULL;
	PyObject *bytes = NULL, *modules = watched;
	char *answer;

	Py_IncRef(modules); /* comparing may run any code, and a turn that replaces it */
	if (name && PyUnicode_Check(name) && PySet_Contains(modules, name) == 1)
		bytes = PyUnicode_AsUTF8String(name);
	Py_DecRef(modules);
	if (bytes) {
		sca_number_add(SCA_N_IMPORTS, 1);
		if (!post(SCA_EVENT_IMPORTED, PyBytes_AsString(bytes), IMPORT_WAIT_NS, &answer))
			sca_number_add(SCA_N_IMPORTS_LATE, 1);
	}
	Py_XDECREF(locals);
	Py_XDECREF(manager);
	Py_XDECREF(name);
	Py_XDECREF(bytes);
	PyErr_Clear();
}

static void raise_flag(int *flag)
{
	pthread_mutex_lock(&lock); /* held for moments only, and never by who wants the GIL */
	*flag = 1;
	pthread_cond_signal(&arrived);
	pthread_mutex_unlock(&lock);
}

void sca_event_hit(void)
{
	raise_flag(&hit);
}

void sca_event_pushed(void)
{
	raise_flag(&pushed);
}

int sca_event_wait(uint64_t ns)
{
	struct timespec deadline = sca_deadline(ns);
	int timeout = 0, more;

	pthread_mutex_lock(&lock);
	while (open_ && !first && !hit && !pushed && !timeout)
		timeout = pthread_cond_timedwait(&arrived, &lock, &deadline) == ETIMEDOUT;
	more = open_;
	pthread_mutex_unlock(&lock);
	return more;
}

void sca_event_next(struct sca_event *event)
{
	memset(event, 0, sizeof(*event));
	pthread_mutex_lock(&lock);
	while (open_ && !first && !hit && !pushed)
		pthread_cond_wait(&arrived, &lock);
	if (!open_) {
		event->kind = SCA_EVENT_STOP;
	} else if (first) {
		struct request *request = first;

		first = request->next;
		if (!first)
			last = &first;
		event->kind = request->kind;
		event->module = request->module;
		event->request = request;
	} else if (pushed) {
		pushed = 0;
		event->kind = SCA_EVENT_PUSHED;
	} else {
		hit = 0;
		event->kind = SCA_EVENT_HIT;
	}
	pthread_mutex_unlock(&lock);
}

void sca_event_done(struct sca_event *event)
{
	struct request *request = event->request;

	if (!request)
		return;
	pthread_mutex_lock(&lock);
	requests--;
	if (request->handled) {
		free(request->answer);
		free(request);
	} else {
		request->handled = 1;
		pthread_cond_broadcast(&handled);
	}
	pthread_mutex_unlock(&lock);
}

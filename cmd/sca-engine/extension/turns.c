// SPDX-License-Identifier: Apache-2.0
#include "turns.h"

#include "numbers.h"

#include <pthread.h>
#include <time.h>

/* After so long a turn ends, and the threads that wait for the GIL get as long to take it. CPython itself
 * lets a thread hold it for 5 ms (sys.getswitchinterval). */
#define TURN_NS 200000
#define PAUSE_NS 100000

static pthread_mutex_t turn;
static int stopped = 1;    /* guarded by turn */
static PyThreadState *own; /* of the thread that has the turns, once it has had one */

static pthread_mutex_t giving; /* held by who gave work until it is done */
static pthread_mutex_t lock;   /* guards what follows */
static pthread_cond_t changed;
static void (*given)(void *context);
static void *given_context;

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void sca_turns_begin(void)
{
	pthread_mutex_init(&turn, NULL);
	pthread_mutex_init(&giving, NULL);
	pthread_mutex_init(&lock, NULL);
	pthread_cond_init(&changed, NULL);
	given = NULL;
	own = NULL;
	stopped = 0;
}

void sca_turns_run(void (*work)(void *context), void *context)
{
	pthread_mutex_lock(&giving);
	pthread_mutex_lock(&lock);
	given_context = context;
	given = work;
	pthread_cond_signal(&changed);
	while (given)
		pthread_cond_wait(&changed, &lock);
	pthread_mutex_unlock(&lock);
	pthread_mutex_unlock(&giving);
}

void sca_turns_serve(void)
{
	pthread_mutex_lock(&lock);
	for (;;) {
		while (!given)
			pthread_cond_wait(&changed, &lock);
		pthread_mutex_unlock(&lock);
		given(given_context);
		pthread_mutex_lock(&lock);
		given = NULL;
		pthread_cond_signal(&changed);
	}
}

void sca_turns_end(void)
{
	/* A turn under way may be waiting for the GIL that this thread holds. */
	Py_BEGIN_ALLOW_THREADS
	pthread_mutex_lock(&turn);
	stopped = 1;
	pthread_mutex_unlock(&turn);
	Py_END_ALLOW_THREADS
}

static int turn_begin(void)
{
	pthread_mutex_lock(&turn);
	if (stopped) {
		pthread_mutex_unlock(&turn);
		return 0;
	}
	if (own) {
		PyEval_RestoreThread(own);
	} else {
		PyGILState_Ensure(); /* never released: the thread state is kept for the next turn */
		own = PyThreadState_Get();
	}
	return 1;
}

static void turn_end(uint64_t began)
{
	uint64_t took;

	PyErr_Clear();
	took = now_ns() - began;
	PyEval_SaveThread();
	sca_number_add(SCA_N_TURNS, 1);
	sca_number_add(SCA_N_TURN_NS, took);
	if (took > sca_engine.numbers[SCA_N_TURN_MAX_NS]) /* turns take turns: no other writes it */
		__atomic_store_n(&sca_engine.numbers[SCA_N_TURN_MAX_NS], took, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&turn);
}

struct items {
	void *array;
	size_t count;
	void (*step)(void *array, size_t i);
	void (*stop)(void *array, size_t i);
};

static void take_turns(void *context)
{
	static const struct timespec pause = { .tv_nsec = PAUSE_NS };
	const struct items *items = context;
	size_t i = 0;

	while (i < items->count && turn_begin()) {
		uint64_t began = now_ns();

		do
			items->step(items->array, i++), PyErr_Clear();
		while (i < items->count && now_ns() - began < TURN_NS);
		turn_end(began);
		if (i < items->count)
			nanosleep(&pause, NULL);
	}
	for (; items->stop && i < items->count; i++)
		items->stop(items->array, i);
}

void sca_in_turns(void *array, size_t count, void (*step)(void *array, size_t i),
		  void (*stop)(void *array, size_t i))
{
	struct items items = { array, count, step, stop };

	sca_turns_run(take_turns, &items);
}

// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "runtime.h"

#include "configurations.h"
#include "deadline.h"
#include "descriptors.h"
#include "events.h"
#include "numbers.h"
#include "signals.h"
#include "turns.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MFD_EXEC
#define MFD_EXEC 0x0010U /* Linux 6.3: asked for where a policy makes it not the default */
#endif

/* How long start() waits for the first desired set: a file takes 3 ms, an agent may be far away. */
#define READY_WAIT_NS 1000000000
/* A child that execs or exits at once, as most do that Python forks, needs no engine. */
#define CHILD_GRACE_NS 200000000

/* The reconciler's file, which the Makefile builds first, twice: the one that can talk to an Agent has
 * more than double the size, which only a process that needs it shall have in memory. */
#define EMBED(name, file)                                                                          \
	__asm__(".pushsection .rodata\n"                                                           \
		".balign 4096\n" #name "_start: .incbin \"" file "\"\n" #name "_end:\n"            \
		".popsection\n");                                                                  \
	extern const char name##_start[] __attribute__((visibility("hidden")));                    \
	extern const char name##_end[] __attribute__((visibility("hidden")))
EMBED(sca_reconciler, SCA_RECONCILER);
EMBED(sca_agent_reconciler, SCA_AGENT_RECONCILER);

/* Held from before the reconciler is loaded until what that changed is put back: fork() waits for it. */
static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;
static void *reconciler; /* of this process */

static pthread_mutex_t lock; /* guards what follows */
static pthread_cond_t changed;
static int ready;
static char reason_not_running[SCA_REASON_SIZE];

static struct sca_host host;

static void set_state(enum sca_engine_state state)
{
	__atomic_store_n(&sca_engine.state, state, __ATOMIC_RELEASE);
}

static void host_loaded(void)
{
	sca_signals_restore(dlsym(reconciler, "scaReconcile"));
	pthread_mutex_unlock(&loading);
	set_state(SCA_ENGINE_RUNNING);
}

static void host_ready(void)
{
	pthread_mutex_lock(&lock);
	ready = 1;
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
}

/* Returns 0 when the engine had ended before. */
static int end(enum sca_engine_state state, const char *reason)
{
	int first;

	pthread_mutex_lock(&lock);
	first = sca_engine.state == SCA_ENGINE_STARTING || sca_engine.state == SCA_ENGINE_RUNNING;
	if (first) {
		snprintf(reason_not_running, sizeof(reason_not_running), "%s", reason);
		set_state(state);
		ready = 1;
		pthread_cond_broadcast(&changed);
	}
	pthread_mutex_unlock(&lock);
	if (first)
		sca_events_end();
	return first;
}

static void host_refuse(const char *reason)
{
	end(SCA_ENGINE_REFUSED, reason);
}

static void host_halt(const char *reason)
{
	char line[SCA_REASON_SIZE + 128];

	if (end(SCA_ENGINE_HALTED, reason)) {
		snprintf(line, sizeof(line),
			 "sca-probe engine: process %d: halted, patches stay as they are: %s\n",
			 (int)getpid(), reason);
		sca_host_log(line, strlen(line));
	}
	for (;;)
		pause();
}

void sca_runtime_reason(char reason[SCA_REASON_SIZE])
{
	pthread_mutex_lock(&lock);
	memcpy(reason, reason_not_running, SCA_REASON_SIZE);
	pthread_mutex_unlock(&lock);
}

static int write_all(int fd)
{
	int agent = strcmp(host.source, SCA_SOURCE_AGENT) == 0;
	const char *at = agent ? sca_agent_reconciler_start : sca_reconciler_start;
	const char *end = agent ? sca_agent_reconciler_end : sca_reconciler_end;

	while (at < end) {
		ssize_t n = write(fd, at, end - at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -1;
		at += n;
	}
	return 0;
}

/* Opens a fresh file to copy the reconciler to: in memory, or a temporary one that has no name by the
 * time it is used, where the system has no such thing or forbids to execute from it. */
static int open_copy(int in_memory)
{
	const char *folder = getenv("TMPDIR");
	char path[PATH_MAX];
	int fd;

	if (in_memory) {
		fd = memfd_create("sca-probe-reconciler", MFD_CLOEXEC | MFD_EXEC);
		if (fd < 0 && errno == EINVAL)
			fd = memfd_create("sca-probe-reconciler", MFD_CLOEXEC);
		return fd;
	}
	snprintf(path, sizeof(path), "%s/sca-probe-XXXXXX", folder && *folder ? folder : "/tmp");
	fd = mkostemp(path, O_CLOEXEC);
	if (fd >= 0)
		unlink(path);
	return fd;
}

/*
 * Names an open file by a path that no process between the first engine and this one used: the dynamic
 * loader takes one name for one file, and would give a child that got the same descriptor its parent's dead
 * reconciler. What differs is how often the way is written "/" and how often "/./".
 */
static void unique_path(char path[PATH_MAX], int fd)
{
	int at = sprintf(path, "/proc/thread-self"), bit;

	for (bit = 0; bit < 32; bit++)
		at += sprintf(path + at, sca_engine.forks >> bit & 1 ? "/." : "/");
	sprintf(path + at, "/fd/%d", fd);
}

static void *load_copy(int in_memory)
{
	int fd = open_copy(in_memory);
	void *handle = NULL;
	char path[PATH_MAX];

	if (fd < 0)
		return NULL;
	unique_path(path, fd);
	if (write_all(fd) == 0)
		handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	close(fd);
	/* The file has its bytes still, should a child want them. */
	madvise((void *)sca_reconciler_start, sca_reconciler_end - sca_reconciler_start,
		MADV_DONTNEED);
	return handle;
}

/* Returns the reconciler's entry with the loading lock held, or NULL with it free. */
static void (*load(void))(struct sca_host *)
{
	void (*entry)(struct sca_host *) = NULL;
	const char *why;

	pthread_mutex_lock(&loading);
	sca_signals_note();
	reconciler = load_copy(1);
	if (!reconciler)
		reconciler = load_copy(0);
	if (reconciler)
		*(void **)&entry = dlsym(reconciler, "scaReconcile");
	if (!entry) {
		pthread_mutex_unlock(&loading);
		why = dlerror();
		host_refuse(why ? why : strerror(errno));
	}
	return entry;
}

static int start_detached(void *(*thread)(void *), void *argument)
{
	pthread_attr_t detached;
	pthread_t id;
	int failed;

	pthread_attr_init(&detached);
	pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
	failed = pthread_create(&id, &detached, thread, argument);
	pthread_attr_destroy(&detached);
	return failed;
}

static void *reconciler_thread(void *unused)
{
	void (*reconcile)(struct sca_host *);

	(void)unused;
	sca_descriptors_part();
	reconcile = load();
	if (reconcile)
		reconcile(&host); /* returns never */
	return NULL;
}

static void *turns_thread(void *grace)
{
	int failed;

	if (!sca_event_wait((uintptr_t)grace))
		return NULL;
	failed = start_detached(reconciler_thread, NULL);
	if (failed)
		host_refuse(strerror(failed));
	else
		sca_turns_serve();
	return NULL;
}

/* Starts the engine's threads with all signals blocked, and with them all threads of the Go runtime: signals
 * to the process go to the program's threads, as before. */
static int start_threads(uint64_t grace)
{
	sigset_t all, mask;
	int failed;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &mask);
	failed = start_detached(turns_thread, (void *)(uintptr_t)grace);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	if (failed) {
		sca_events_end(); /* nobody would handle them */
		errno = failed;
	}
	return failed ? -1 : 0;
}

static void init_lock(void)
{
	pthread_mutex_init(&lock, NULL);
	sca_deadline_cond(&changed);
}

static void before_fork(void)
{
	pthread_mutex_lock(&loading);
}

static void after_fork_in_parent(void)
{
	pthread_mutex_unlock(&loading);
}

static int child_without_thread; /* guarded by the GIL */

static int start_child(void *unused)
{
	(void)unused;
	sca_runtime_child();
	return 0;
}

/* The child has the forking thread alone: whoever held a lock is gone, and so is Go. */
static void after_fork_in_child(void)
{
	int number;

	pthread_mutex_init(&loading, NULL);
	init_lock();
	sca_events_begin();
	sca_events_end(); /* until the child has a thread that handles them */
	sca_turns_begin();
	reconciler = NULL;
	sca_signals_forget();
	sca_configurations_forked();
	sca_engine.forks++;
	for (number = SCA_N_UPDATES; number < SCA_NUMBERS; number++)
		sca_engine.numbers[number] = 0;
	if (sca_engine.state == SCA_ENGINE_RUNNING || sca_engine.state == SCA_ENGINE_HALTED) {
		reason_not_running[0] = 0;
		set_state(SCA_ENGINE_STARTING);
	}
	child_without_thread = 1;
	/* os.fork() tells Python of the child, a fork() in C does not: uWSGI forks its workers so. Python then
	 * starts the thread when it next runs a bytecode; in a child that execs, never. */
	Py_AddPendingCall(start_child, NULL);
}

void sca_runtime_child(void)
{
	if (sca_engine.state != SCA_ENGINE_STARTING || !child_without_thread)
		return;
	child_without_thread = 0;
	sca_events_begin();
	start_threads(CHILD_GRACE_NS);
}

int sca_runtime_start(const char *source, int major, int minor, int magic)
{
	struct timespec deadline;
	char *copy;

	if (sca_engine.state != SCA_ENGINE_OFF)
		return 0;
	copy = strdup(source);
	if (!copy) {
		PyErr_NoMemory();
		return -1;
	}
	host = (struct sca_host){
		.loaded = host_loaded,
		.ready = host_ready,
		.refuse = host_refuse,
		.halt = host_halt,
		.read = sca_host_read,
		.release = sca_host_release,
		.swap = sca_host_swap,
		.revert = sca_host_revert,
		.drop = sca_host_drop,
		.living = sca_host_living,
		.state = sca_host_state,
		.mode = sca_host_mode,
		.watch = sca_host_watch,
		.next = sca_event_next,
		.answer = sca_event_answer,
		.done = sca_event_done,
		.configurations = sca_host_configurations,
		.applied = sca_host_applied,
		.log = sca_host_log,
		.numbers = sca_engine.numbers,
		.major = major,
		.minor = minor,
		.magic = magic,
		.source = copy,
	};
	init_lock();
	sca_events_begin();
	sca_turns_begin();
	set_state(SCA_ENGINE_STARTING);
	pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
	if (start_threads(0) < 0) {
		set_state(SCA_ENGINE_REFUSED);
		PyErr_SetFromErrno(PyExc_OSError);
		return -1;
	}
	deadline = sca_deadline(READY_WAIT_NS);
	Py_BEGIN_ALLOW_THREADS
	pthread_mutex_lock(&lock);
	while (!ready && pthread_cond_timedwait(&changed, &lock, &deadline) == 0)
		;
	pthread_mutex_unlock(&lock);
	Py_END_ALLOW_THREADS
	return 0;
}

void sca_runtime_stop(void)
{
	if (sca_engine.state != SCA_ENGINE_STARTING && sca_engine.state != SCA_ENGINE_RUNNING)
		return;
	sca_events_end();
	sca_turns_end();
	set_state(SCA_ENGINE_STOPPED);
}

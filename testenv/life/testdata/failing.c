/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Preloaded into a program, refuses the n-th allocation that the engine makes of libc: any of the
 * extension's, and of the reconciler's those by calloc. Others of the reconciler's are the Go runtime's own,
 * which ends the process when it cannot start a thread.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

static int countdown, failed;

void sca_fail_at(int n)
{
	__atomic_store_n(&failed, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&countdown, n, __ATOMIC_SEQ_CST);
}

/* Ends it, and returns whether an allocation was refused. */
int sca_failed(void)
{
	__atomic_store_n(&countdown, 0, __ATOMIC_SEQ_CST);
	return __atomic_load_n(&failed, __ATOMIC_SEQ_CST);
}

static int refuse(void *caller, int by_calloc)
{
	Dl_info file;

	if (__atomic_load_n(&countdown, __ATOMIC_SEQ_CST) <= 0 || !dladdr(caller, &file) ||
	    !file.dli_fname)
		return 0;
	if (!strstr(file.dli_fname, "_engine.abi3.so") &&
	    !(by_calloc && strstr(file.dli_fname, "/fd/")))
		return 0;
	if (__atomic_sub_fetch(&countdown, 1, __ATOMIC_SEQ_CST) != 0)
		return 0;
	__atomic_store_n(&failed, 1, __ATOMIC_SEQ_CST);
	return 1;
}

#define REFUSE(by_calloc)                                                                          \
	if (refuse(__builtin_return_address(0), by_calloc))                                        \
	return NULL

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *memory, size_t size);

void *malloc(size_t size)
{
	REFUSE(0);
	return __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
	REFUSE(1);
	return __libc_calloc(count, size);
}

void *realloc(void *memory, size_t size)
{
	REFUSE(0);
	return __libc_realloc(memory, size);
}

char *strndup(const char *text, size_t size)
{
	size_t length = strnlen(text, size);
	char *copy;

	REFUSE(0);
	copy = __libc_malloc(length + 1);
	if (copy) {
		memcpy(copy, text, length);
		copy[length] = 0;
	}
	return copy;
}

char *strdup(const char *text)
{
	REFUSE(0);
	return strndup(text, strlen(text));
}

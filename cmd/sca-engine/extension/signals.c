// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "signals.h"

#include <dlfcn.h>
#include <link.h>
#include <signal.h>
#include <stdint.h>
#include <ucontext.h>

static struct sigaction before[NSIG];

/* Of SIGSEGV: what the program had, what Go has, and where Go's code is. */
static struct sigaction programs, gos;
static uintptr_t code_start, code_end;

static void on_fault(int signal, siginfo_t *info, void *context)
{
	uintptr_t at = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];

	if (at >= code_start && at < code_end) {
		gos.sa_sigaction(signal, info, context);
	} else if (programs.sa_handler != SIG_DFL && programs.sa_handler != SIG_IGN) {
		if (programs.sa_flags & SA_SIGINFO)
			programs.sa_sigaction(signal, info, context);
		else
			programs.sa_handler(signal);
	} else {
		/* The instruction runs again, and the program ends by the fault itself. */
		sigaction(signal, &programs, NULL);
		if (info->si_code <= 0) /* sent by a process: no instruction brings it back */
			raise(signal);
	}
}

void sca_signals_note(void)
{
	int signal;

	for (signal = 1; signal < NSIG; signal++) {
		if (sigaction(signal, NULL, &before[signal]) < 0)
			continue;
		/*
		 * CPython's handlers ask for the alternative stack from 3.10 on, and Go asks all handlers
		 * to: a signal may interrupt a thread that runs on a small stack of Go's.
		 */
		if (before[signal].sa_handler != SIG_DFL && before[signal].sa_handler != SIG_IGN)
			before[signal].sa_flags |= SA_ONSTACK;
	}
	if (before[SIGSEGV].sa_sigaction != on_fault) /* a forked child has it still */
		programs = before[SIGSEGV];
}

struct search {
	uintptr_t function, start, end;
};

static int find_code(struct dl_phdr_info *info, size_t size, void *context)
{
	struct search *search = context;
	int i;

	(void)size;
	for (i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *segment = &info->dlpi_phdr[i];
		uintptr_t start = info->dlpi_addr + segment->p_vaddr;

		if (segment->p_type != PT_LOAD || !(segment->p_flags & PF_X))
			continue;
		if (search->function >= start && search->function < start + segment->p_memsz) {
			search->start = start;
			search->end = start + segment->p_memsz;
			return 1;
		}
	}
	return 0;
}

void sca_signals_restore(void *function)
{
	struct search search = { .function = (uintptr_t)function };
	struct sigaction fault = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	int signal;

	dl_iterate_phdr(find_code, &search);
	for (signal = 1; signal < NSIG; signal++) {
		struct sigaction now;
		uintptr_t handler;

		if (sigaction(signal, NULL, &now) < 0)
			continue;
		handler = (uintptr_t)now.sa_sigaction;
		if (handler < search.start || handler >= search.end)
			continue; /* not Go's: the program may have changed it meanwhile */
		if (signal == SIGSEGV && programs.sa_handler != SIG_IGN) {
			gos = now;
			code_start = search.start;
			code_end = search.end;
			fault.sa_mask = programs.sa_mask;
			sigaction(signal, &fault, NULL);
		} else {
			sigaction(signal, &before[signal], NULL);
		}
	}
}

void sca_signals_forget(void)
{
	code_start = code_end = 0;
}

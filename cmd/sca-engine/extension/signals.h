/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The program's signal dispositions, which loading the reconciler must not change.
 *
 * Go installs handlers when it starts; they are taken out again. Crashes, their exit codes, SIGPIPE and what
 * faulthandler prints stay what they were, and a forked child has no handler that would enter its parent's
 * dead runtime. The one exception is SIGSEGV: without a handler a nil dereference in the reconciler would
 * end the program, where Go makes it a panic that is caught. So SIGSEGV has a handler of the extension's,
 * which tells by the faulting instruction whether it is Go's, and else does what would have been done
 * without it.
 */
#ifndef SCA_SIGNALS_H
#define SCA_SIGNALS_H

/* Notes the dispositions, before the reconciler is loaded. */
void sca_signals_note(void);
/* Puts them back, once the Go runtime is up. function is one of the reconciler's. */
void sca_signals_restore(void *function);
/* In a forked child: there is no reconciler. */
void sca_signals_forget(void);

#endif

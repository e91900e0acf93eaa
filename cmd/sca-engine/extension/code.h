/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Code objects: read, rewritten with a hook, put in place and taken out again.
 *
 * A function in another function has no name to be reached by; its code is a constant of the outer one's.
 * To patch it, that constant is replaced, in a copy of the outer code object, which then is what the
 * engine calls a carrier: its last constant is a hook of mode SCA_CARRIER that holds the original. All of
 * these need the GIL, and run no Python code but an audit hook's.
 */
#ifndef SCA_CODE_H
#define SCA_CODE_H

#include "hook.h"

int sca_code_init(int minor);

/* Reads the bytes of r->code. Returns -1 with an exception set. */
int sca_code_read(struct sca_reading *r);
/* Puts s in place. What is missing after it: functions that ran the code before. */
enum sca_status sca_code_patch(struct sca_swap *s);
/* Takes over what something else made of the patched code, where r's function is the one that hook was made for. */
enum sca_status sca_code_adopt(struct sca_reading *r, struct sca_hook *hook);
/* Puts the original back. What is missing after it: functions that share the code. */
enum sca_status sca_code_restore(struct sca_hook *hook, char reason[SCA_REASON_SIZE]);
/* The same for a hook of one function, from within that function. Returns -1 when it cannot. */
int sca_code_restore_function(struct sca_hook *hook);

/*
 * Gives every function that runs the original or the patched code of one of the hooks the code that the
 * hook's state asks for: the functions that sca_code_patch and sca_code_restore left. One walk over all
 * objects that the garbage collector knows, for all of the hooks.
 */
enum sca_status sca_code_walk(struct sca_hook *const *hooks, size_t count);

/* The code object that a patched one stands for; the same one where it is not patched. Borrowed. */
PyObject *sca_code_original(PyObject *code);

/* printf into a reason. */
void sca_explain(char reason[SCA_REASON_SIZE], const char *format, ...)
	__attribute__((format(printf, 2, 3)));
/* Takes the exception that is set as the reason, by its type's name: str() may run user code. */
enum sca_status sca_failed(char reason[SCA_REASON_SIZE], const char *doing);

#endif

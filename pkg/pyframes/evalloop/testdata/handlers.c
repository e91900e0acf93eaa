/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What FuzzFind starts from: a library of a few kilobytes that has what Find looks for in CPython 3.11 to
 * 3.15. MINOR says which; HOLE(op) which opcodes are undefined. No interpreter is in it.
 */
#include <stdint.h>

struct interpreter {
	uint64_t other[6], version; /* 3.12: at 48 */
};

struct thread {
	uint64_t other[2];
	struct interpreter *interpreter; /* at 16 */
	uint64_t version;                /* from 3.13 on: at 24 */
};

struct code {
	uint64_t other[20], version12, version13; /* at 160, 168 */
};

struct frame {
	struct code *code; /* from 3.12 on */
	uint64_t other[3];
	struct code *code11; /* at 32 */
	uint64_t more[2];
	uint16_t *instr; /* at 56 */
};

void slow(struct thread *, struct frame *);

#if MINOR == 12
#define VERSION(t, f) ((f)->code->version12 != (t)->interpreter->version)
#elif MINOR > 12
#define VERSION(t, f) ((f)->code->version13 != ((t)->version & ~UINT64_C(255)))
#else
#define VERSION(t, f) ((f)->instr == 0)
#endif

#define DISPATCH() goto *table[(uint8_t)*next]
#define OTHER(n)                                                                                   \
	other##n : next += n + 1;                                                                  \
	throw ^= next[n] + n;                                                                      \
	DISPATCH();
#define SOME(a, b, c, d) OTHER(a) OTHER(b) OTHER(c) OTHER(d)

int _PyEval_EvalFrameDefault(struct thread *thread, struct frame *frame, int throw)
{
	static const void *const table[256] = { TABLE };
	uint16_t *next = frame->instr;

	DISPATCH();
resume:
	frame->instr = next++;
	if (VERSION(thread, frame))
		slow(thread, frame);
	DISPATCH();
instrumented:
	frame->instr = next++;
	if (VERSION(thread, frame))
		return 2;
	DISPATCH();
special:
	frame->instr = next++;
	if (VERSION(thread, frame))
		goto resume;
	DISPATCH();
	SOME(0, 1, 2, 3);
	SOME(4, 5, 6, 7);
	SOME(8, 9, 10, 11);
	SOME(12, 13, 14, 15);
hole:
	return throw;
}

// Package bytecode rewrites the bytecode of a function so that its first act is to negate a hook.
//
// The prologue is LOAD_CONST hook, UNARY_NEGATIVE, POP_TOP: the hook's type counts in its nb_negative
// slot. No call is made, so that profilers and sys.monitoring, which report calls, see none; neither
// are there inline caches to fill, and one stack slot is enough.
//
// It is pure: bytes in, bytes out, with one table of opcodes per CPython version ([Version]). Where
// a code object is not of the shape that CPython's own compiler gives it, nothing is rewritten and
// the error says what was found.
//
// The prologue stands where the function starts: after RESUME, before CPython 3.11 after a generator's
// GEN_START or at offset 0. A generator so counts when it is started, not when it is created. A jump to what was the
// first instruction goes there still, not to the prologue.
//
// No line begins in the prologue or anew behind it: it has none, as CPython's own has none, or from 3.11 on, where the
// instructions on both sides are of one line, that line. Tracebacks, line events and positions of all
// others stay what they were. Line tables of 3.8 and 3.9 cannot say that; there it is of the first instruction's
// line, and a debugger that sets f_lineno to that line starts the function, and counts it, again.
// Events for each instruction (f_trace_opcodes, sys.monitoring's INSTRUCTION) are the one thing that shows it.
package bytecode

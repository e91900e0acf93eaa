// Package bytecode rewrites the bytecode of a function so that its first act is to call a hook.
//
// It is pure: bytes in, bytes out, with one table of opcodes per CPython version ([Version]). Where
// a code object is not of the shape that CPython's own compiler gives it, nothing is rewritten and
// the error says what was found.
//
// The prologue stands right after the RESUME that starts the function, so a generator counts when
// it is started, not when it is created. Its instructions have no line of their own, as CPython's
// own prologue has none: tracebacks, line events and positions of all others stay what they were.
package bytecode

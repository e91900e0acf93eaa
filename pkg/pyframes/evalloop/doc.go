// Package evalloop finds, in an interpreter binary on disk, the places of CPython's eval loop where
// every start of a Python function passes, and how to read the frame there.
//
// Up to 3.10 each start calls _PyEval_EvalFrameDefault, so its entry is the place. From 3.11 on a call
// from Python to Python does not leave the loop, but each start does execute a RESUME instruction in
// one of its variants. [Find] reads the table of the opcodes' handlers, follows the handlers of the
// RESUME variants through their first instructions, and returns a [Site] for each. It does not matter
// where the handlers are: in the function, in a part of it that was moved elsewhere, in functions of
// their own (the tail-call interpreter), or copied into other handlers (by BOLT).
//
// What it takes from the handlers is what they do, not how a compiler happens to write it: the value
// that is stored as the frame's instruction pointer, the value whose fields are a thread's. A binary
// in which anything is not as known is refused ([ErrUnknownBuild]).
package evalloop

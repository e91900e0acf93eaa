// Package evalloop finds, in an interpreter binary on disk, the places of CPython's eval loop where
// every start of a Python function passes, and how to read the frame there.
//
// From 3.11 on a call from Python to Python does not leave _PyEval_EvalFrameDefault, so its entry
// says little. Each start does execute a RESUME instruction in one of its variants. [Find] reads the
// table of the opcodes' handlers, disassembles the handlers of the RESUME variants, and returns a
// [Site] for each. A binary in which anything is not as known is refused ([ErrUnknownBuild]).
package evalloop

// Package pyframes reads CPython from outside: which processes run it and which
// build, where a target's function and code object are, whether CPython itself has
// left evidence that the code ran, and whether the engine has patched it.
//
// It only reads, through process_vm_readv, and needs CAP_SYS_PTRACE (or the same user
// and a permissive ptrace scope). It stops no process and writes nothing into one.
//
// Supported are final releases of CPython 3.6 to 3.15 on x86-64 Linux with the global
// interpreter lock and without Py_DEBUG. Everything else is refused with
// [ErrUnsupportedBuild]. From 3.13 the layout comes from _Py_DebugOffsets in the running
// process, else from a table; either is checked against objects that every interpreter
// has before anything read with it is believed.
package pyframes

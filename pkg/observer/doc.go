// Package observer says what became of targets in a running Python process, from outside it.
//
// [Verify] joins witnesses that do not depend on each other over one window of time: the marks that
// CPython leaves in a code object (pyframes), the eval loop's own instructions (loader, evalloop),
// and, where the process runs the engine, its static probes and its counters. A verdict names the
// witnesses it rests on; witnesses that exclude each other make it [Contradicted].
package observer

// Package loader puts the kernel programs of package bpf in place and reads what they counted.
//
// An [EvalLoopCounter] counts the starts of code objects at CPython's eval loop, in any process. A
// [StaticProbes] listens to the engine's own probes. Both cover one process, and leave nothing
// attached once they are closed or their process ends.
package loader

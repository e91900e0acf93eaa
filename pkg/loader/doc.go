// Package loader puts the kernel programs of package bpf in place and reads what they saw.
//
//   - An [EvalLoopCounter] counts the starts of code objects at CPython's eval loop, exactly, in one process.
//   - A [Follower] tells of the first start of each, in one process or in all that run a build.
//   - [Watchpoints] count up to four functions by hardware, where CPython leaves no mark (3.12).
//   - A [StaticProbes] listens to the engine's own probes.
//   - [ProcessEvents] tell of every process of the machine, as it begins, runs another program, and ends.
//
// What they need of the kernel [Features] tries out; an error that is [ErrPermission] says that this user may
// not. Nothing stays attached once they are closed, or their process or this one ends, however it ends: all
// that the kernel holds are descriptors. What a program came upon and could not tell of is counted, too
// ([Losses]): while there is none, counts are exact.
//
// Where in a file the eval loop is, package evalloop finds; where in a process a function is, pyframes does.
// The example joins the three.
package loader

// Command embedgo is a Go program with CPython inside it, for tests of finding CPython in programs
// that are not Python's own. It runs the statements that its argument is.
//
// Which CPython that is, and whether as a shared library or linked in, is said when it is built, by
// CGO_LDFLAGS. So it is a module of its own: nothing else should be built with them.
package main

/*
#include <stdlib.h>

// The same in every version, and so without Python.h.
void Py_Initialize(void);
int PyRun_SimpleStringFlags(const char *statements, void *flags);
void Py_Finalize(void);
*/
import "C"

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: embedgo STATEMENTS")
		os.Exit(2)
	}
	runtime.LockOSThread()
	statements := C.CString(os.Args[1])
	defer C.free(unsafe.Pointer(statements))
	C.Py_Initialize()
	status := C.PyRun_SimpleStringFlags(statements, nil)
	C.Py_Finalize()
	os.Exit(-int(status))
}

// Command embedpython unpacks the python-build-standalone interpreter that the
// go-embed-python module carries, so that tests have the PGO+LTO+BOLT builds of CPython
// that uv installs, on any machine that reaches a Go module proxy.
//
// One go-embed-python version carries one CPython version. go.mod selects 3.14;
// another is selected with -modfile:
//
//	go run .                     DIR   # CPython 3.14
//	go run -modfile=py313.mod .  DIR   # CPython 3.13; likewise py312, py311 and py310
package main

import (
	"fmt"
	"os"

	"github.com/kluctl/go-embed-python/python"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: embedpython DIR")
		os.Exit(2)
	}
	if _, err := python.NewEmbeddedPythonWithTmpDir(os.Args[1], false); err != nil {
		fmt.Fprintf(os.Stderr, "embedpython: unpacking into %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

package testenv

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// Compile has gcc make a file of C with these arguments, and returns where it is.
func Compile(t testing.TB, arguments ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "compiled")
	gcc := exec.Command("gcc", append(append([]string{}, arguments...), "-o", path)...)
	if out, err := gcc.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", gcc.Args, err, out)
	}
	return path
}

package wheel

import (
	"debug/elf"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"sca-probe/testenv"
)

// TestWheelTag checks what the wheel's name promises: that any CPython from 3.8 on can load it, on x86-64
// with that glibc, and that an older glibc could not.
func TestWheelTag(t *testing.T) {
	build := filepath.Join(testenv.Root(), "build")
	extension := filepath.Join(build, "lib", "sca-probe", "python", "sca_probe", "_engine.abi3.so")
	major, minor := 0, 0
	for _, path := range []string{extension, filepath.Join(build, "reconciler.so"), filepath.Join(build, "reconciler-agent.so")} {
		file, err := elf.Open(path)
		if err != nil {
			t.Fatalf("%v: run `make wheel` first", err)
		}
		defer file.Close()
		if file.Machine != elf.EM_X86_64 {
			t.Errorf("%s is for %s", path, file.Machine)
		}
		libraries, err := file.ImportedLibraries()
		if err != nil {
			t.Fatal(err)
		}
		for _, library := range libraries {
			if !strings.HasPrefix(library, "libc.so.") && !strings.HasPrefix(library, "ld-linux-x86-64.so.") {
				t.Errorf("%s needs %s, which is not glibc's", path, library)
			}
		}
		symbols, err := file.ImportedSymbols()
		if err != nil {
			t.Fatal(err)
		}
		for _, symbol := range symbols {
			var a, b int
			if n, _ := fmt.Sscanf(symbol.Version, "GLIBC_%d.%d", &a, &b); n == 2 && (a > major || a == major && b > minor) {
				major, minor = a, b
			}
			if python := strings.HasPrefix(symbol.Name, "Py") || strings.HasPrefix(symbol.Name, "_Py"); python && path != extension {
				t.Errorf("%s needs %s of CPython", path, symbol.Name)
			}
		}
	}
	want := fmt.Sprintf("-cp38-abi3-manylinux_%d_%d_x86_64.whl", major, minor)
	if name := filepath.Base(wheelPath(t)); !strings.HasSuffix(name, want) {
		t.Errorf("the wheel is %s, its files need glibc %d.%d", name, major, minor)
	}
}

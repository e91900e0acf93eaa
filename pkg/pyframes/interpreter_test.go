package pyframes

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sca-probe/testenv"
)

// library compiles testdata/library.c: a few kilobytes that have what is looked for in a build's file.
func library(t testing.TB, minor int) []byte {
	t.Helper()
	path := testenv.Compile(t, "-O2", "-shared", "-fPIC", "-nostdlib", "-Wl,-z,noseparate-code", "-Wl,--build-id",
		fmt.Sprintf("-Wl,-soname,libpython3.%d.so.1.0", minor), fmt.Sprintf("-DMINOR=%d", minor),
		filepath.Join("testdata", "library.c"))
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// FuzzInterpreter reads files as if they were a build's. Whatever is there, the readers return.
func FuzzInterpreter(f *testing.F) {
	for minor := 5; minor <= 16; minor++ {
		data := library(f, minor)
		f.Add(data)
		in, err := readInterpreter(bytes.NewReader(data), "seed")
		known := minor >= 6 && minor <= 15
		if in == nil || in.Version.Minor != minor || in.BuildID == "" || in.Linkage != "shared" || (err == nil) != known {
			f.Errorf("3.%d: %+v, %v", minor, in, err)
		}
		if is, id := mayBeInterpreter(bytes.NewReader(data), false); !is || id != in.BuildID {
			f.Errorf("3.%d: may be an interpreter: %v, %q", minor, is, id)
		}
	}
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, data []byte) {
		began := time.Now()
		r := bytes.NewReader(data)
		mayBeInterpreter(r, true)
		in, err := readInterpreter(r, "fuzzed")
		if err == nil && (in.symbols["PyType_Type"] == 0 || in.Version.Major != 3) || err != nil && !errors.Is(err, ErrNotPython) && !errors.Is(err, ErrUnsupportedBuild) {
			t.Errorf("%+v, %v", in, err)
		}
		hasProbes(r, "sca")
		linkedLibrary(r, "/bin/sh")
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("the answers took %v", took)
		}
	})
}

package pyframes

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"os/exec"
	"testing"

	"sca-probe/testenv"
)

// TestBuildIDsThatLie has a Finder see a file first that says to be Debian's build and has its symbols
// elsewhere, or says to be a pre-release. Debian's own must be found all the same.
func TestBuildIDsThatLie(t *testing.T) {
	const path = "/usr/bin/python3.11"
	real, err := os.ReadFile(path)
	if err != nil {
		testenv.Missing(t, "no /usr/bin/python3.11: run `make deps`")
	}
	python := exec.Command(path, "-c", "import sys; print(1, flush=True); sys.stdin.read()")
	testenv.StartCommand(t, python)
	for name, lie := range map[string]func(symbol elf.Symbol, entry, object []byte){
		"symbols elsewhere": func(symbol elf.Symbol, entry, _ []byte) {
			const value = 8 // Elf64_Sym.st_value
			if symbol.Name == "PyDict_Type" || symbol.Name == "_PyRuntime" {
				binary.LittleEndian.PutUint64(entry[value:], symbol.Value+64)
			}
		},
		"a pre-release": func(symbol elf.Symbol, _, object []byte) {
			if symbol.Name == "Py_Version" {
				object[0] = 0xa0
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			lying := bytes.Clone(real)
			f, err := elf.NewFile(bytes.NewReader(lying))
			if err != nil {
				t.Fatal(err)
			}
			symbols, err := f.DynamicSymbols()
			if err != nil {
				t.Fatal(err)
			}
			table := f.Section(".dynsym")
			for i, symbol := range symbols {
				const size = 24 // of Elf64_Sym; the first is left out
				for _, prog := range f.Progs {
					if prog.Type == elf.PT_LOAD && symbol.Value >= prog.Vaddr && symbol.Value-prog.Vaddr < prog.Filesz {
						lie(symbol, lying[table.Offset+uint64(size*(i+1)):], lying[symbol.Value-prog.Vaddr+prog.Off:])
					}
				}
			}
			file := t.TempDir() + "/python"
			if err := os.WriteFile(file, lying, 0o755); err != nil {
				t.Fatal(err)
			}
			opened, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer opened.Close()
			var finder Finder
			in, _ := finder.learn(opened, file, true)
			honest, err := OpenInterpreter(path)
			if err != nil {
				t.Fatal(err)
			}
			if in == nil || in.BuildID != honest.BuildID {
				t.Fatalf("%+v does not say to be %+v: this test shows nothing", in, honest)
			}
			for range 2 {
				p, err := finder.Open(python.Process.Pid)
				if err != nil {
					t.Fatal(err)
				}
				p.Close()
			}
		})
	}
}

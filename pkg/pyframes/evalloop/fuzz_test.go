package evalloop

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sca-probe/testenv"
)

// handlers compiles testdata/handlers.c for a version.
func handlers(t testing.TB, minor int) []byte {
	t.Helper()
	known := releases[[2]int{3, minor}]
	var table []string
	for opcode := range 256 {
		label := fmt.Sprint("other", opcode%16)
		switch op := byte(opcode); {
		case slices.Contains(known.undefined, op):
			label = "hole"
		case slices.Contains(known.specialised, op):
			label = "special"
		case slices.Index(known.resumes, op) == 0:
			label = "resume"
		case slices.Contains(known.resumes, op):
			label = "instrumented"
		}
		table = append(table, "&&"+label)
	}
	arguments := []string{"-O2", "-fno-crossjumping", "-fno-gcse", "-fcf-protection=none", "-nostdlib", "-s", "-Wl,-z,noseparate-code,--build-id=none,--nmagic",
		fmt.Sprintf("-DMINOR=%d", minor), "-DTABLE=" + strings.Join(table, ","), filepath.Join("testdata", "handlers.c")}
	if minor%2 == 0 { // the table needs relocating in a library only
		arguments = append(arguments, "-shared", "-fPIC")
	} else {
		arguments = append(arguments, "-static", "-no-pie", "-fno-pie", "-Wl,--unresolved-symbols=ignore-all,--entry=0")
	}
	data, err := os.ReadFile(testenv.Compile(t, arguments...))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// FuzzFind looks for the eval loop in files that are none, or none any more. Whatever is there, the answer
// comes soon, and where it is a table, its sites are code of the file.
func FuzzFind(f *testing.F) {
	for minor := 6; minor <= 15; minor++ {
		data := handlers(f, max(minor, 11))
		f.Add(data, byte(minor))
		if minor < 11 {
			continue
		}
		// What is changed is changed from something that is found.
		if table, err := find(bytes.NewReader(data), "seed", 3, minor); err != nil || len(table.Sites) == 0 {
			f.Errorf("3.%d: %+v, %v", minor, table, err)
		}
	}
	f.Add([]byte("\x7fELF"), byte(11))
	f.Fuzz(func(t *testing.T, data []byte, minor byte) {
		began := time.Now()
		table, err := find(bytes.NewReader(data), "fuzzed", 3, int(minor))
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("the answer took %v", took)
		}
		if err != nil {
			if !errors.Is(err, ErrUnknownBuild) {
				t.Errorf("%v, want ErrUnknownBuild", err)
			}
			return
		}
		for _, site := range table.Sites {
			if site.Offset >= uint64(len(data)) {
				t.Errorf("a site at %#x in a file of %#x bytes", site.Offset, len(data))
			}
		}
	})
}

// TestPossibleBranchesEverywhere has code in which every instruction hides what looks like a branch, so that
// each has to be told from an instruction.
func TestPossibleBranchesEverywhere(t *testing.T) {
	hiding := []byte{0x48, 0xb8, 0xe9, 0, 0, 0, 0, 0, 0, 0} // mov $…, %rax
	const regions, base = 256, 0x1000
	img := &image{code: []span{{"", base, bytes.Repeat(hiding, regions*maxSweep/len(hiding))}}}
	for i := range regions {
		img.handlers = append(img.handlers, base+uint64(i*(maxSweep/len(hiding))*len(hiding)))
	}
	began := time.Now()
	for at := range img.code[0].bytes {
		begins := at%len(hiding) == 0
		if got := img.maybeInstruction(base + uint64(at)); got != begins && at < len(img.code[0].bytes)-maxSweep {
			t.Fatalf("an instruction at %#x: %v, want %v", at, got, begins)
		}
		if time.Since(began) > time.Minute { // at once, if each place is looked at once
			t.Fatalf("%d of %d bytes in a minute", at, len(img.code[0].bytes))
		}
	}
}

// TestSectionsThatAreNotMapped has a file whose sections are not what processes map of it. A probe at what
// was read would be at some other place.
func TestSectionsThatAreNotMapped(t *testing.T) {
	data := handlers(t, 13)
	const programHeaders, size, offset = 64, 56, 8
	count := int(binary.LittleEndian.Uint16(data[56:]))
	for i := range count {
		header := data[programHeaders+i*size:]
		if elf.ProgType(binary.LittleEndian.Uint32(header)) == elf.PT_LOAD {
			binary.LittleEndian.PutUint64(header[offset:], binary.LittleEndian.Uint64(header[offset:])+16)
		}
	}
	if table, err := find(bytes.NewReader(data), "shifted", 3, 13); !errors.Is(err, ErrUnknownBuild) {
		t.Errorf("%+v, %v", table, err)
	}
}

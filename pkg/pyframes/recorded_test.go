package pyframes

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/gob"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"sca-probe/pkg/rc"
	"sca-probe/testenv"
)

// Recorded memory keeps every layout tested where its build is not: testdata/recorded has, for one
// build of each version, the memory that answering took and the answers that Python itself gave.
//
//	go test ./pkg/pyframes -run TestRecorded -record
//
// records anew, which is needed when a reader reads what it did not before.
var record = flag.Bool("record", false, "record testdata/recorded from the builds on this machine")

// A recording is what was read of one process.
type recording struct {
	Version  Version
	Addr     map[string]uint64
	ListHead uint64
	Lines    map[uint64][]byte // by address, each of lineSize
	Cases    []testenv.TargetCase
	Ran      map[string]bool // targets, and whether they had run
	// Functions are the function objects of the modules shapes and targets, by the address of their code.
	Functions map[uint64]uint64
}

// lineSize is the unit of recording: pages would be ten times as large.
const lineSize = 256

// recorder is memory that keeps what was read of it.
type recorder struct {
	under memory
	lines map[uint64][]byte
}

func (r *recorder) readAt(b []byte, addr uint64) error {
	for len(b) > 0 {
		at := addr &^ (lineSize - 1)
		line := r.lines[at]
		if line == nil {
			if r.under == nil {
				return fmt.Errorf("%w: nothing was recorded at %#x", ErrCorrupt, addr)
			}
			line = make([]byte, lineSize)
			if err := r.under.readAt(line, at); err != nil {
				return err
			}
			r.lines[at] = line
		}
		n := copy(b, line[addr-at:])
		b, addr = b[n:], addr+uint64(n)
	}
	return nil
}

func (rec *recording) image(under memory) (*image, error) {
	im := &image{mem: &recorder{under, rec.Lines}, addr: rec.Addr, listHead: rec.ListHead}
	var err error
	if im.layout, err = layoutOf(im.mem, rec.Version, im.listHead); err != nil {
		return nil, err
	}
	return im, im.check(rec.Version)
}

// examine answers everything that the recording knows the answers of.
func (rec *recording) examine(t *testing.T, im *image) {
	t.Helper()
	for _, c := range rec.Cases {
		target, err := rc.ParseTarget(c.Target)
		if err != nil {
			t.Fatal(err)
		}
		f, err := im.resolve(target)
		var unresolved *UnresolvedError
		switch {
		case errors.As(err, &unresolved) && unresolved.Kind.String() == c.Refused:
		case err != nil:
			t.Errorf("%s: %v, want %q, %#x", c.Target, err, c.Refused, c.Code)
		case f.Code.Addr != c.Code:
			t.Errorf("%s: %#x, want %q, %#x", c.Target, f.Code.Addr, c.Refused, c.Code)
		}
	}
	for name, ran := range rec.Ran {
		target, err := rc.ParseTarget(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := im.resolve(target)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if e, err := im.evidence(f.Code); err != nil || e.Executed != ran {
			t.Errorf("%s: %+v, %v; ran: %v", name, e, err, ran)
		}
	}
	s := &functionScan{FunctionScan: &FunctionScan{}, process: &Process{image: *im}, seen: map[codeKey]bool{}}
	for code, function := range rec.Functions {
		h, err := s.readFunction(im, function)
		if err != nil || h.code != code || len(h.states) == 0 || !s.stillHeld(h) {
			t.Errorf("function at %#x with code at %#x: %+v, %v", function, code, h, err)
		}
	}
	if len(rec.Cases) < 150 || len(rec.Ran) < 5 || len(rec.Functions) < 40 {
		t.Errorf("only %d targets, %d with evidence and %d functions", len(rec.Cases), len(rec.Ran), len(rec.Functions))
	}
}

// FuzzRecorded changes what was recorded of real processes, deep in what is read.
func FuzzRecorded(f *testing.F) {
	var recordings []*recording
	var lines [][]uint64
	for minor := 6; layouts[[2]int{3, minor}] != nil; minor++ {
		rec := readRecording(f, recordedPath(minor))
		recordings = append(recordings, rec)
		lines = append(lines, slices.Sorted(maps.Keys(rec.Lines)))
		f.Add(byte(minor-6), []byte{}, byte(0))
		f.Add(byte(minor-6), []byte{0, 7, 8, 1, 2, 30, 16, 255, 3, 3, 40, 0}, byte(minor))
	}
	f.Fuzz(func(t *testing.T, version byte, changes []byte, first byte) {
		rec := recordings[int(version)%len(recordings)]
		at := lines[int(version)%len(recordings)]
		changed := *rec
		changed.Lines = maps.Clone(rec.Lines)
		for ; len(changes) >= 4; changes = changes[4:] {
			addr := at[(int(changes[0])<<8|int(changes[1]))%len(at)]
			line := slices.Clone(changed.Lines[addr])
			line[changes[2]] = changes[3]
			changed.Lines[addr] = line
		}
		im, err := changed.image(nil)
		if err != nil {
			return
		}
		for i := range 8 {
			c := rec.Cases[(int(first)+23*i)%len(rec.Cases)]
			target, err := rc.ParseTarget(c.Target)
			if err != nil {
				t.Fatal(err)
			}
			if found, err := im.resolve(target); err == nil {
				im.evidence(found.Code)
			}
		}
		s := &functionScan{FunctionScan: &FunctionScan{}, process: &Process{image: *im}, engine: true, seen: map[codeKey]bool{}}
		for _, function := range rec.Functions {
			s.readFunction(im, function)
		}
	})
}

func recordedPath(minor int) string {
	return filepath.Join("testdata", "recorded", fmt.Sprintf("3.%d.gz", minor))
}

func TestRecorded(t *testing.T) {
	if *record {
		testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Observer), func(t *testing.T, in testenv.Interpreter) {
			recordProcess(t, in).write(t, recordedPath(in.Minor))
		})
	}
	var versions []int
	for version := range layouts {
		versions = append(versions, version[1])
	}
	slices.Sort(versions)
	for _, minor := range versions {
		t.Run(fmt.Sprintf("3.%d", minor), func(t *testing.T) {
			rec := readRecording(t, recordedPath(minor))
			im, err := rec.image(nil)
			if err != nil {
				t.Fatal(err)
			}
			rec.examine(t, im)
		})
	}
}

// TestADictThatIsResized has sys.modules as it is in the middle of being resized: its new keys have no entries
// yet. That a module is not in it is then no answer.
func TestADictThatIsResized(t *testing.T) {
	for version := range layouts {
		minor := version[1]
		t.Run(fmt.Sprintf("3.%d", minor), func(t *testing.T) {
			rec := readRecording(t, recordedPath(minor))
			im, err := rec.image(nil)
			if err != nil {
				t.Fatal(err)
			}
			states, err := im.mainFirst()
			if err != nil {
				t.Fatal(err)
			}
			modules, err := im.modules(states[0])
			if err != nil {
				t.Fatal(err)
			}
			keys, err := im.word(modules, im.layout.dictKeys)
			if err != nil {
				t.Fatal(err)
			}
			at := keys + im.layout.keys.entries
			copy(rec.Lines[at&^(lineSize-1)][at%lineSize:], make([]byte, 8))
			if f, err := im.resolve(rc.Target{Module: "shapes", QualName: "plain"}); !errors.Is(err, ErrTorn) {
				t.Errorf("the answer is %+v, %v; want %v", f, err, ErrTorn)
			}
		})
	}
}

func recordProcess(t *testing.T, in testenv.Interpreter) *recording {
	t.Helper()
	// Memory holds paths and the environment: here those of any machine.
	program, err := filepath.EvalSymlinks(in.Path)
	if err != nil {
		t.Fatal(err)
	}
	s := testenv.StartSubject(t, in, testenv.WithPrefix("unshare", "--mount", "sh", "-ec", `
		mount -t tmpfs none /mnt
		mkdir /mnt/project /mnt/python
		mount --bind "$0" /mnt/project
		mount --bind "$1" /mnt/python
		cd /mnt # compiled files name where they were compiled
		exec env -i HOME=/mnt PYTHONDONTWRITEBYTECODE=1 PYTHONNOUSERSITE=1 PYTHONPYCACHEPREFIX=/mnt/cache "/mnt/python/bin/$2" /mnt/project/testenv/subjects/shapes.py
	`, testenv.Root(), filepath.Dir(filepath.Dir(program)), filepath.Base(program)))
	rec := &recording{Lines: map[uint64][]byte{}, Cases: testenv.TargetCases(t, s), Functions: map[uint64]uint64{}}
	rec.Ran = map[string]bool{"shapes:never": false, "shapes:plain": false, "shapes:closure_generator": false}
	for _, name := range []string{"keywords", "generator", "raises", "Shapes.Inner.deep", "wrapped"} {
		s.Call(name, 3)
		rec.Ran["shapes:"+name] = true
	}
	p, err := OpenProcess(s.PID())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for f, err := range p.Functions(context.Background(), &FunctionScan{Match: func(module string, _ Code) bool { return module == "shapes" || module == "targets" }}) {
		if err != nil {
			t.Fatal(err)
		}
		if f.Function != 0 {
			rec.Functions[f.Addr] = f.Function
		}
	}
	rec.Version, rec.Addr, rec.ListHead = p.in.Version, p.image.addr, p.image.listHead
	im, err := rec.image(p.image.mem)
	if err != nil {
		t.Fatal(err)
	}
	rec.examine(t, im)
	return rec
}

func (rec *recording) write(t *testing.T, path string) {
	t.Helper()
	home, _ := os.UserHomeDir()
	for _, private := range []string{testenv.Root(), home + "/", "PATH="} {
		for at, line := range rec.Lines {
			if bytes.Contains(line, []byte(private)) {
				t.Fatalf("not written: %q is in the memory at %#x", private, at)
			}
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewWriterLevel(f, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(gob.NewEncoder(z).Encode(rec), z.Close()); err != nil {
		t.Fatal(err)
	}
	if at, err := f.Seek(0, 1); err == nil {
		t.Logf("%s: %d KB, of %d KB read", path, at>>10, len(rec.Lines)*lineSize>>10)
	}
}

func readRecording(t testing.TB, path string) *recording {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	rec := new(recording)
	if err := gob.NewDecoder(z).Decode(rec); err != nil {
		t.Fatal(err)
	}
	return rec
}

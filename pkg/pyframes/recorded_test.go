package pyframes

import (
	"bytes"
	"compress/gzip"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sca-probe/pkg/rc"
	"sca-probe/testenv"
)

// enough checks that a recording, which keeps a layout tested where its build is not, has as much as it should.
func (rec *recording) enough(t *testing.T) {
	t.Helper()
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

// TestRecorded replays testdata/recorded, which has one build of each version. `make record` records anew, as
// is needed when a reader reads what it did not before.
func TestRecorded(t *testing.T) {
	var versions []int
	for version := range layouts {
		versions = append(versions, version[1])
	}
	slices.Sort(versions)
	for _, minor := range versions {
		t.Run(fmt.Sprintf("3.%d", minor), func(t *testing.T) {
			rec := readRecording(t, recordedPath(minor))
			if err := rec.check(nil); err != nil {
				t.Error(err)
			}
			rec.enough(t)
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

func readRecording(t testing.TB, path string) *recording {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return decodeRecording(t, content)
}

func decodeRecording(t testing.TB, content []byte) *recording {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	rec := new(recording)
	if err := gob.NewDecoder(z).Decode(rec); err != nil {
		t.Fatal(err)
	}
	return rec
}

// TestRecord records a process and replays it when it is gone. What must not be recorded is not.
func TestRecord(t *testing.T) {
	s := testenv.StartSubject(t, testenv.OfMinor(t, testenv.Observer, 11))
	s.Call("plain", 1)
	known := Known{Ran: map[string]bool{"shapes:plain": true, "shapes:never": false}, Modules: []string{"shapes", "targets"}}
	for _, c := range testenv.TargetCases(t, s) {
		known.Targets = append(known.Targets, KnownTarget(c))
	}
	var recorded bytes.Buffer
	if err := Record(&recorded, s.PID(), known); err != nil {
		t.Fatal(err)
	}
	private := known
	private.Private = []string{testenv.Root()}
	if err := Record(io.Discard, s.PID(), private); err == nil || !strings.Contains(err.Error(), "is in the memory") {
		t.Errorf("with the folder of this checkout in it: %v", err)
	}
	wrong := known
	wrong.Ran = map[string]bool{"shapes:plain": false}
	if err := Record(io.Discard, s.PID(), wrong); err == nil || !strings.Contains(err.Error(), "shapes:plain") {
		t.Errorf("with a wrong answer: %v", err)
	}
	s.Kill()
	rec := decodeRecording(t, recorded.Bytes())
	if err := rec.check(nil); err != nil {
		t.Error(err)
	}
	if len(rec.Cases) < 150 || len(rec.Functions) < 40 {
		t.Errorf("only %d targets and %d functions", len(rec.Cases), len(rec.Functions))
	}
}

package evalloop

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sca-probe/testenv"
)

// evalLoopFile asks an interpreter for its version and for the file that holds its eval loop.
func evalLoopFile(t *testing.T, in testenv.Interpreter) (path string, minor int) {
	t.Helper()
	out, err := exec.Command(in.Path, "-c", `import sys
maps = [l.split()[-1] for l in open("/proc/self/maps") if "r-xp" in l]
libs = [m for m in maps if "/libpython3" in m]
print(sys.version_info[1], (libs or maps)[0])`).Output()
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(out))
	minor, err = strconv.Atoi(fields[0])
	if err != nil {
		t.Fatal(err)
	}
	return fields[1], minor
}

func TestFind(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		path, minor := evalLoopFile(t, in)
		table, err := Find(path, 3, minor)
		if err != nil {
			t.Fatal(err)
		}
		known := releases[[2]int{3, minor}]
		seen := map[uint8]bool{}
		for _, site := range table.Sites {
			t.Logf("%+v", site)
			seen[site.Opcode] = true
			// The cold RESUME alone may be where others branch into; in one build it is the other way round.
			if !site.Emulated && !slices.Contains(known.resumes, site.Opcode) && in.Name != "3.11-standalone" {
				t.Errorf("opcode %d at %#x: the kernel would single-step", site.Opcode, site.Offset)
			}
		}
		want := len(known.resumes) + len(known.specialised)
		if known.entry != nil {
			want = 1
		}
		if len(seen) != want {
			t.Errorf("sites for opcodes %v, want one for each RESUME at least", seen)
		}
		for _, wrong := range []int{11, 12, 13, 14, 15} {
			if wrong == minor || known.entry != nil && wrong < 11 {
				continue
			}
			if _, err := Find(path, 3, wrong); !errors.Is(err, ErrUnknownBuild) {
				t.Errorf("taken for 3.%d: %v, want ErrUnknownBuild", wrong, err)
			}
		}
		t.Run("truncated", func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, size := range []int{0, 100, len(data) / 3, len(data) - 100} {
				cut := filepath.Join(t.TempDir(), "cut")
				if err := os.WriteFile(cut, data[:size], 0o600); err != nil {
					t.Fatal(err)
				}
				if _, err := Find(cut, 3, minor); !errors.Is(err, ErrUnknownBuild) {
					t.Errorf("cut to %d bytes: %v, want ErrUnknownBuild", size, err)
				}
			}
		})
	})
}

func TestFindRefusesWhatIsNoInterpreter(t *testing.T) {
	for _, path := range []string{"/bin/true", "/bin/sh", "find.go", "/nonexistent"} {
		if _, err := Find(path, 3, 11); !errors.Is(err, ErrUnknownBuild) {
			t.Errorf("%s: %v, want ErrUnknownBuild", path, err)
		}
	}
	if _, err := Find("/bin/true", 3, 5); !errors.Is(err, ErrUnknownBuild) {
		t.Errorf("3.5: %v, want ErrUnknownBuild", err)
	}
}

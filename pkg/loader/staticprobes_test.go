package loader

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// compilers place a probe's arguments differently: in registers, on the stack, as constants.
var compilers = []struct {
	name, command string
}{
	{"gcc", "gcc -O2"},
	{"gcc, unoptimised", "gcc -O0"},
	{"gcc, at fixed addresses", "gcc -O2 -no-pie -static"},
	{"clang", "clang-19 -O2"},
}

// eachProgram builds testdata/probes.c in each way.
func eachProgram(t *testing.T, f func(t *testing.T, path string)) {
	for _, c := range compilers {
		t.Run(c.name, func(t *testing.T) {
			words := strings.Fields(c.command)
			if _, err := exec.LookPath(words[0]); err != nil && os.Getenv("CI") == "" {
				t.Skip(err)
			}
			path := filepath.Join(t.TempDir(), "probes")
			args := append(words[1:], "-o", path, filepath.Join("testdata", "probes.c"))
			if out, err := exec.Command(words[0], args...).CombinedOutput(); err != nil {
				t.Fatalf("building with %s (sys/sdt.h is in systemtap-sdt-dev): %v\n%s", c.command, err, out)
			}
			f(t, path)
		})
	}
}

// A firing is a running testdata/probes.c.
type firing struct {
	t     *testing.T
	pid   int
	stdin io.Writer
	lines *bufio.Reader
}

func startProgram(t *testing.T, path string) *firing {
	t.Helper()
	cmd := exec.Command(path)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		cmd.Wait()
	})
	return &firing{t, cmd.Process.Pid, stdin, bufio.NewReader(stdout)}
}

func (f *firing) ask(format string, args ...any) string {
	f.t.Helper()
	if _, err := fmt.Fprintf(f.stdin, format+"\n", args...); err != nil {
		f.t.Fatal(err)
	}
	answer, err := f.lines.ReadString('\n')
	if err != nil {
		f.t.Fatal(err)
	}
	return strings.TrimSpace(answer)
}

func (f *firing) want(answer, format string, args ...any) {
	f.t.Helper()
	if got := f.ask(format, args...); got != answer {
		f.t.Errorf("%s: the program answers %q, want %q", fmt.Sprintf(format, args...), got, answer)
	}
}

func (s *StaticProbes) wantHits(t *testing.T, want map[uint64]uint64) {
	t.Helper()
	got, err := s.Hits()
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("hits %v, want %v", got, want)
	}
	if lost, err := s.Lost(); err != nil || lost != 0 {
		t.Errorf("%d lost, %v", lost, err)
	}
}

func testStaticProbes(t *testing.T, path string) {
	program, bystander := startProgram(t, path), startProgram(t, path)
	program.want("0 0 0", "semaphores")
	program.want("0", "hit 1000 5")

	probes, err := NewStaticProbes(program.pid, path)
	if err != nil {
		t.Fatal(err)
	}
	// One for each of a probe's locations; what matters is that each is raised, and in this process only.
	if got := program.ask("semaphores"); strings.Contains(" "+got+" ", " 0 ") {
		t.Errorf("semaphores %s while attached", got)
	}
	bystander.want("0 0 0", "semaphores")
	bystander.want("0", "hit 1000 5")

	probes.wantHits(t, map[uint64]uint64{})
	program.want("1", "hit 1000 1")
	program.want("1001", "hit ffff800012345678 1001")
	program.want("6", "hit 1000 6")
	probes.wantHits(t, map[uint64]uint64{0x1000: 7, 0xffff800012345678: 1001})

	long := "module:" + strings.Repeat("x", 505) // as long as a target may be
	program.want("1", "patched module:Class.method 7f0000001000 7f0000002000")
	program.want("1", "reverted module:Class.method 7f0000001000 7f0000002000")
	program.want("1", "patched %s 1 2", long)
	want := []Event{
		{Patched, "module:Class.method", 0x7f0000001000, 0x7f0000002000},
		{Reverted, "module:Class.method", 0x7f0000001000, 0x7f0000002000},
		{Patched, long, 1, 2},
	}
	if got := probes.Events(); !reflect.DeepEqual(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
	probes.wantHits(t, map[uint64]uint64{0x1000: 7, 0xffff800012345678: 1001})

	if err := probes.Close(); err != nil {
		t.Fatal(err)
	}
	program.want("0 0 0", "semaphores")
	program.want("0", "hit 1000 5")
}

func TestStaticProbes(t *testing.T) {
	eachProgram(t, testStaticProbes)
}

// TestStaticProbesWithPerfEvents covers what kernels before 6.6 do.
func TestStaticProbesWithPerfEvents(t *testing.T) {
	without(t, &multiSupported)
	eachProgram(t, testStaticProbes)
}

// TestStaticProbesCountLosses checks that what could not be read or kept shows.
func TestStaticProbesCountLosses(t *testing.T) {
	eachProgram(t, func(t *testing.T, path string) {
		program := startProgram(t, path)
		probes, err := NewStaticProbes(program.pid, path)
		if err != nil {
			t.Fatal(err)
		}
		defer probes.Close()
		program.want("1", "badtarget 1 2")
		if got, want := probes.Events(), []Event{{Patched, "", 1, 2}}; !reflect.DeepEqual(got, want) {
			t.Errorf("events %v, want %v", got, want)
		}
		if lost, err := probes.Lost(); err != nil || lost != 1 {
			t.Errorf("%d lost, %v; want 1, the target", lost, err)
		}
	})
}

// TestStaticProbesAfterTheProcess checks that a process may end first.
func TestStaticProbesAfterTheProcess(t *testing.T) {
	eachProgram(t, func(t *testing.T, path string) {
		program := startProgram(t, path)
		probes, err := NewStaticProbes(program.pid, path)
		if err != nil {
			t.Fatal(err)
		}
		program.want("3", "hit 1 3")
		process, err := os.FindProcess(program.pid)
		if err != nil {
			t.Fatal(err)
		}
		if err := process.Kill(); err != nil {
			t.Fatal(err)
		}
		if _, err := program.lines.ReadString('\n'); !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		probes.wantHits(t, map[uint64]uint64{1: 3})
		if err := probes.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestFilesWithoutStaticProbes(t *testing.T) {
	for _, path := range []string{"/bin/true", "notes.go", filepath.Join(t.TempDir(), "gone")} {
		if _, err := NewStaticProbes(os.Getpid(), path); !errors.Is(err, ErrNoProbes) {
			t.Errorf("%s: %v, want ErrNoProbes", path, err)
		}
	}
}

// TestDamagedNotes cuts and flips bytes all over a program's notes: an error, or notes, and no panic.
func TestDamagedNotes(t *testing.T) {
	eachProgram(t, func(t *testing.T, path string) {
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		intact, err := readNotes(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(intact) < 4 {
			t.Fatalf("%d locations, want at least 4", len(intact))
		}
		from := strings.Index(string(whole), "stapsdt\x00") - 12
		refused := 0
		for i := from; i < from+100; i++ {
			damaged := append([]byte(nil), whole...)
			damaged[i] ^= 0xff
			copied := filepath.Join(t.TempDir(), "damaged")
			if err := os.WriteFile(copied, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := readNotes(copied); err != nil {
				refused++
				if !errors.Is(err, ErrNoProbes) {
					t.Errorf("byte %d: %v, want ErrNoProbes", i-from, err)
				}
			}
		}
		if refused == 0 {
			t.Error("no damage was noticed")
		}
		for _, size := range []int{0, 60, len(whole) / 2} {
			copied := filepath.Join(t.TempDir(), "cut")
			if err := os.WriteFile(copied, whole[:size], 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := readNotes(copied); !errors.Is(err, ErrNoProbes) {
				t.Errorf("cut to %d bytes: %v, want ErrNoProbes", size, err)
			}
		}
	})
}

func TestParseArgument(t *testing.T) {
	for text, want := range map[string]argument{
		"8@%rdi":        {inRegister, 7, 0},
		"-8@%r15":       {inRegister, 15, 0},
		"8@(%rsp)":      {inMemory, 4, 0},
		"8@40(%rdi)":    {inMemory, 7, 40},
		"8@-16(%rbp)":   {inMemory, 5, -16},
		"8@$5":          {constant, 0, 5},
		"-8@$-1":        {constant, 0, -1},
		"8@$4294967296": {constant, 0, 1 << 32},
	} {
		if got, err := parseArgument(text); err != nil || got != want {
			t.Errorf("%s: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "8@", "8", "4@%edi", "-4@$5", "8@%edi", "8@%xmm0", "8@8(%rip)", "8@symbol(%rip)",
		"8@8(%rsp,%rax,4)", "8@%fs:(%rax)", "8@$99999999999999999999", "8@8(%rsp) ", "8@$",
	} {
		if got, err := parseArgument(text); err == nil {
			t.Errorf("%q is taken as %v", text, got)
		}
	}
}

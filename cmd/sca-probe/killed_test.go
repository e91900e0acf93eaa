package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/prometheus/procfs"

	"sca-probe/pkg/pyframes"
	"sca-probe/pkg/pyframes/evalloop"
	"sca-probe/testenv"
)

// TestNothingIsLeftOfAnObserver ends the observer while its probes are in a process: by a signal that it
// hears, and by one that it does not. Afterwards neither the process's own code, in which a probe is a
// breakpoint instruction, nor the kernel has anything of it.
func TestNothingIsLeftOfAnObserver(t *testing.T) {
	testenv.NobodyFollows(t)
	for _, command := range [][]string{
		{"watch", "--for", "1m"},
		{"follow"},
		{"verify", "--for", "1m", "shapes:plain", "shapes:never"},
	} {
		for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT} {
			t.Run(fmt.Sprintf("%s, %v", command[0], signal), func(t *testing.T) {
				s := testenv.StartSubject(t, testenv.OfMinor(t, testenv.Observer, 12)) // on which verify has watchpoints besides
				process, err := pyframes.OpenProcess(s.PID())
				if err != nil {
					t.Fatal(err)
				}
				defer process.Close()
				before := tracingState(t)
				args := append(command, "--pid", fmt.Sprint(s.PID()))
				cmd := exec.Command(testenv.ProbePath(t), args...)
				messages, err := cmd.StderrPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := cmd.Start(); err != nil {
					t.Fatalf("%v: run `make build` first", err)
				}
				// A command that fails says why where this one says what it watches.
				line, err := bufio.NewReader(messages).ReadString('\n')
				if err != nil || strings.HasPrefix(line, "sca-probe: ") {
					_ = cmd.Process.Kill()
					t.Fatalf("it does not watch: %q, %v, %v", line, err, cmd.Wait())
				}
				if n := breakpoints(t, process); n == 0 {
					t.Error("no probe is in the process: this test shows nothing")
				}
				held := kernelObjects(t, cmd.Process.Pid)
				if held["prog"] == nil || held["map"] == nil || held["link"] == nil {
					t.Errorf("it holds %v in the kernel: this test shows nothing", held)
				}
				if err := cmd.Process.Signal(signal); err != nil {
					t.Fatal(err)
				}
				_ = cmd.Wait()
				// The kernel frees what nobody holds some time after.
				for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
					left := alive(t, held)
					if n := breakpoints(t, process); n > 0 {
						left = append(left, fmt.Sprintf("%d breakpoints in the process", n))
					}
					if len(left) == 0 {
						break
					}
					if time.Now().After(deadline) {
						t.Fatalf("left: %v", left)
					}
				}
				if after := tracingState(t); after != before {
					t.Errorf("the kernel's lists of probes and pins were\n%s\nand are\n%s", before, after)
				}
				s.Call("plain", 10)
			})
		}
	}
}

// kernelObjects returns the IDs of the eBPF objects that a process holds, by kind: "prog", "map",
// "link" and "btf".
func kernelObjects(t *testing.T, pid int) map[string][]uint32 {
	t.Helper()
	infos, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	held := map[string][]uint32{}
	for _, info := range infos {
		content, err := os.ReadFile(info)
		if errors.Is(err, fs.ErrNotExist) { // closed since
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(string(content), "\n") {
			name, value, _ := strings.Cut(line, ":")
			kind, ok := strings.CutSuffix(name, "_id")
			id, err := strconv.ParseUint(strings.TrimSpace(value), 10, 32)
			if !ok || err != nil || id == 0 {
				continue
			}
			held[kind] = append(held[kind], uint32(id))
		}
	}
	return held
}

// alive returns which of them the kernel still has.
func alive(t *testing.T, held map[string][]uint32) (left []string) {
	t.Helper()
	open := map[string]func(id uint32) (interface{ Close() error }, error){
		"prog": func(id uint32) (interface{ Close() error }, error) { return ebpf.NewProgramFromID(ebpf.ProgramID(id)) },
		"map":  func(id uint32) (interface{ Close() error }, error) { return ebpf.NewMapFromID(ebpf.MapID(id)) },
		"link": func(id uint32) (interface{ Close() error }, error) { return link.NewFromID(link.ID(id)) },
		"btf":  func(id uint32) (interface{ Close() error }, error) { return btf.NewHandleFromID(btf.ID(id)) },
	}
	for kind, ids := range held {
		for _, id := range ids {
			if open[kind] == nil {
				continue
			}
			object, err := open[kind](id)
			switch {
			case err == nil:
				object.Close()
				left = append(left, fmt.Sprintf("%s %d", kind, id))
			case !errors.Is(err, os.ErrNotExist):
				t.Fatalf("looking for %s %d: %v", kind, id, err)
			}
		}
	}
	return left
}

// tracingState lists what outlives its maker: probes made through tracefs, and pinned eBPF objects.
func tracingState(t *testing.T) string {
	t.Helper()
	var state strings.Builder
	for _, file := range []string{"/sys/kernel/tracing/uprobe_events", "/sys/kernel/debug/tracing/uprobe_events"} {
		content, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		state.Write(content)
	}
	err := filepath.WalkDir("/sys/fs/bpf", func(path string, _ fs.DirEntry, err error) error {
		fmt.Fprintln(&state, path)
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return state.String()
}

// breakpoints counts the eval loop's probe sites that hold one.
func breakpoints(t *testing.T, process *pyframes.Process) int {
	t.Helper()
	in := process.Interpreter()
	table, err := evalloop.Find(process.BinaryPath(), in.Version.Major, in.Version.Minor)
	if err != nil {
		t.Fatal(err)
	}
	proc, err := procfs.NewProc(process.PID())
	if err != nil {
		t.Fatal(err)
	}
	maps, err := proc.ProcMaps()
	if err != nil {
		t.Fatal(err)
	}
	const int3 = 0xcc
	n := 0
	for _, site := range table.Sites {
		for _, m := range maps {
			if m.Pathname != in.Path || !m.Perms.Execute || uint64(m.Offset) > site.Offset || site.Offset-uint64(m.Offset) >= uint64(m.EndAddr-m.StartAddr) {
				continue
			}
			var code [1]byte
			if err := process.ReadMemory(code[:], uint64(m.StartAddr)+site.Offset-uint64(m.Offset)); err != nil {
				t.Fatal(err)
			}
			if code[0] == int3 {
				n++
			}
		}
	}
	return n
}

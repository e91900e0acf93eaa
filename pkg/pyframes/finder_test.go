package pyframes_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sca-probe/pkg/pyframes"
	"sca-probe/testenv"
)

func debian(t *testing.T) testenv.Interpreter {
	t.Helper()
	for _, in := range testenv.Interpreters(testenv.Observer) {
		if in.Name == "3.11-debian" {
			return in
		}
	}
	testenv.Missing(t, "no /usr/bin/python3.11: run `make deps`")
	return testenv.Interpreter{}
}

const readyAndRead = "import sys; print('ready', flush=True); sys.stdin.read()"

// mustFind fails unless the process can be read and a function resolves in it.
func mustFind(t *testing.T, finder *pyframes.Finder, pid int) pyframes.Summary {
	t.Helper()
	s, ok := finder.Look(pid)
	if !ok || s.Err != nil || s.Interpreter == nil {
		t.Fatalf("process %d: %+v, %v", pid, s, ok)
	}
	p, err := finder.Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	resolve(t, p, "os:path.join")
	return s
}

func TestFinderFindsAProgramThatWasReplacedOnDisk(t *testing.T) {
	in := debian(t)
	program := filepath.Join(t.TempDir(), "python3.11")
	content, err := os.ReadFile(in.Path)
	if err != nil {
		t.Fatal(err)
	}
	for _, replace := range []struct {
		how string
		do  func() error
	}{
		{"deleted", func() error { return os.Remove(program) }},
		{"replaced", func() error {
			if err := os.WriteFile(program+".new", []byte("another program"), 0o755); err != nil {
				return err
			}
			return os.Rename(program+".new", program)
		}},
	} {
		t.Run(replace.how, func(t *testing.T) {
			if err := os.WriteFile(program, content, 0o755); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(program, "-c", readyAndRead)
			cmd.Env = append(os.Environ(), "PYTHONHOME=/usr")
			testenv.StartCommand(t, cmd)
			if err := replace.do(); err != nil {
				t.Fatal(err)
			}
			var finder pyframes.Finder
			s := mustFind(t, &finder, cmd.Process.Pid)
			if s.Interpreter.Version.Minor != 11 || s.Interpreter.Path != program {
				t.Errorf("%+v", s.Interpreter)
			}
		})
	}
}

func TestFinderFindsHostsThatEmbedPython(t *testing.T) {
	t.Run("gdb", func(t *testing.T) {
		gdb, err := exec.LookPath("gdb")
		if err != nil {
			testenv.Missing(t, "no gdb: run `make pythons`")
		}
		cmd := exec.Command(gdb, "-nx", "-q", "-batch", "-ex", "python "+readyAndRead)
		testenv.StartCommand(t, cmd)
		var finder pyframes.Finder
		s := mustFind(t, &finder, cmd.Process.Pid)
		if s.Interpreter.Linkage != "shared" || !strings.HasPrefix(filepath.Base(s.Interpreter.Path), "libpython") {
			t.Errorf("%+v", s.Interpreter)
		}
	})
	t.Run("uWSGI", func(t *testing.T) {
		uwsgi, err := exec.LookPath("uwsgi_python3")
		if err != nil {
			testenv.Missing(t, "no uwsgi_python3: run `make pythons`")
		}
		// It writes its log, and what Python prints, to standard error.
		cmd := exec.Command("sh", "-c", `exec "$0" "$@" 2>&1`, uwsgi, "--socket", "127.0.0.1:0", "--eval", "application = print",
			"--master", "--processes", "2", "--die-on-term", "--no-orphans")
		testenv.StartCommand(t, cmd)
		var finder pyframes.Finder
		// The workers too, which the master forks.
		deadline := time.Now().Add(10 * time.Second)
		for workers := 0; workers < 2; time.Sleep(20 * time.Millisecond) {
			children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
			if err != nil {
				t.Fatal(err)
			}
			workers = 0
			for _, child := range strings.Fields(string(children)) {
				pid, err := strconv.Atoi(child)
				if err != nil {
					t.Fatal(err)
				}
				if s := mustFind(t, &finder, pid); s.Interpreter.Linkage != "shared" {
					t.Errorf("%+v", s.Interpreter)
				}
				workers++
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d workers", workers)
			}
		}
		mustFind(t, &finder, cmd.Process.Pid)
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	})
	for name, host := range map[string]struct {
		linked, home, linkage string
		minor                 int
	}{
		"Go with libpython 3.7":                        {"", "~/.pyenv/versions/3.7.*", "shared", 7},
		"Go with CPython linked in, exporting nothing": {"/usr/lib/x86_64-linux-gnu/libpython3.11.a -lm -lz -lexpat -ldl -lutil", "/usr", "static", 11},
	} {
		t.Run(name, func(t *testing.T) {
			flags := host.linked
			if rest, ok := strings.CutPrefix(host.home, "~"); ok {
				home, err := os.UserHomeDir()
				if err != nil {
					t.Fatal(err)
				}
				found, err := filepath.Glob(home + rest)
				if err != nil || len(found) == 0 {
					testenv.Missing(t, fmt.Sprintf("no %s with a libpython: run `pyenv install 3.7`", host.home))
				}
				host.home = found[0]
				flags = fmt.Sprintf("-L%s/lib -Wl,-rpath,%[1]s/lib -lpython3.7m", host.home)
			}
			program := filepath.Join(t.TempDir(), "embedgo")
			build := exec.Command("go", "build", "-o", program, ".")
			build.Dir = filepath.Join(testenv.Root(), "testenv", "embedgo")
			build.Env = append(os.Environ(), "CGO_LDFLAGS="+flags)
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("build: %v\n%s", err, out)
			}
			cmd := exec.Command(program, readyAndRead)
			cmd.Env = append(os.Environ(), "PYTHONHOME="+host.home)
			testenv.StartCommand(t, cmd)
			var finder pyframes.Finder
			s := mustFind(t, &finder, cmd.Process.Pid)
			if s.Interpreter.Linkage != host.linkage || s.Interpreter.Version.Minor != host.minor {
				t.Errorf("%+v", s.Interpreter)
			}
			p, err := finder.Open(cmd.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			if n := len(functions(t, p, nil)); n < 500 {
				t.Errorf("only %d functions", n)
			}
		})
	}
	t.Run("library loaded and never started", func(t *testing.T) {
		in := debian(t)
		cmd := exec.Command(in.Path, "-c", "import ctypes; ctypes.PyDLL('libpython3.11.so.1.0', 0); "+readyAndRead)
		testenv.StartCommand(t, cmd)
		var finder pyframes.Finder
		if s := mustFind(t, &finder, cmd.Process.Pid); s.Interpreter.Linkage != "static" {
			t.Errorf("%+v", s.Interpreter)
		}
	})
}

func TestFinderFindsProcessesInNamespaces(t *testing.T) {
	in := debian(t)
	root := t.TempDir()
	// A mount namespace in which the program has another path, and PIDs of its own.
	script := fmt.Sprintf("mount --rbind / %[1]s && mount -t tmpfs none %[1]s/opt && cp %[2]s %[1]s/opt/service && exec chroot %[1]s /opt/service -c 'import os; print(os.getpid(), flush=True); import sys; sys.stdin.read()'", root, in.Path)
	cmd := exec.Command("sh", "-c", script)
	cmd.Env = append(os.Environ(), "PYTHONHOME=/usr")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUSER, UidMappings: []syscall.SysProcIDMap{{HostID: 0, Size: 1}}, GidMappings: []syscall.SysProcIDMap{{HostID: 0, Size: 1}}}
	inside := testenv.StartCommand(t, cmd).Ready
	var finder pyframes.Finder
	s := mustFind(t, &finder, cmd.Process.Pid)
	if strconv.Itoa(s.NamespacePID) != inside || s.NamespacePID == s.PID {
		t.Errorf("PID %d in its namespace, %s says the process", s.NamespacePID, inside)
	}
	if time.Since(s.Started) > time.Minute || time.Until(s.Started) > time.Second {
		t.Errorf("started at %v", s.Started)
	}
	all, err := finder.Processes(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, found := range all {
		if found.PID == cmd.Process.Pid {
			return
		}
	}
	t.Errorf("process %d is not among the %d found", cmd.Process.Pid, len(all))
}

func TestFinderLooksAtManyProcessesAtOnce(t *testing.T) {
	in := debian(t)
	const many = 200
	started := map[int]bool{}
	for range many {
		cmd := exec.Command(in.Path, "-S", "-I", "-c", readyAndRead)
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		started[cmd.Process.Pid] = true
		t.Cleanup(func() { stdin.Close(); cmd.Wait() })
	}
	var finder pyframes.Finder
	// Some have not finished starting: then that is what is said.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		all, err := finder.Processes(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		ready := 0
		for _, s := range all {
			if !started[s.PID] {
				continue
			}
			switch {
			case s.Err == nil:
				ready++
			case !strings.Contains(s.Err.Error(), pyframes.ErrNotReady.Error()):
				t.Fatalf("%+v", s)
			}
		}
		if ready == many {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d found", ready, many)
		}
	}
}

package testenv

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A Subject is a Python process that runs testenv/subjects/shapes.py and does
// what a test asks of it. Its targets are "shapes:plain", "shapes:Shapes.method"
// and the others in shapes.TARGETS.
type Subject struct {
	t        testing.TB
	pid      int
	cmd      *exec.Cmd
	stdin    io.WriteCloser
	lines    chan []byte // from stdout; closed at its end
	exited   chan struct{}
	stderr   lockedBuffer
	patience time.Duration
	mu       sync.Mutex // one request at a time
}

type subjectConfig struct {
	env      []string
	prefix   []string
	args     []string
	dir      string
	patience time.Duration
	spaces   uintptr
}

// A SubjectOption changes how StartSubject starts the process.
type SubjectOption func(*subjectConfig)

// WithEnv adds variables, each "NAME=value", to the environment.
func WithEnv(env ...string) SubjectOption {
	return func(c *subjectConfig) { c.env = append(c.env, env...) }
}

// WithPrefix puts a command before the interpreter's, such as "sca-probe", "run", "--".
func WithPrefix(command ...string) SubjectOption {
	return func(c *subjectConfig) { c.prefix = append(c.prefix, command...) }
}

// WithPythonArgs adds options of the interpreter, before the script: "-X", "importtime".
func WithPythonArgs(args ...string) SubjectOption {
	return func(c *subjectConfig) { c.args = append(c.args, args...) }
}

// WithDir sets the folder that the process starts in.
func WithDir(dir string) SubjectOption {
	return func(c *subjectConfig) { c.dir = dir }
}

// WithAnswerTimeout changes how long an answer may take: 60 s unless set.
func WithAnswerTimeout(d time.Duration) SubjectOption {
	return func(c *subjectConfig) { c.patience = d }
}

// WithNamespaces starts the process in new namespaces: flags are CLONE_NEW…, and a user namespace has this
// test's user as root. A prefix must become the interpreter by exec. PID is that in this test's namespace.
func WithNamespaces(flags uintptr) SubjectOption {
	return func(c *subjectConfig) { c.spaces = flags }
}

// StartSubject starts the subject and waits until it is ready. The test's cleanup
// ends it. With a prefix, PID is that of the Python process, not of the command.
func StartSubject(t testing.TB, in Interpreter, opts ...SubjectOption) *Subject {
	t.Helper()
	config := subjectConfig{patience: 60 * time.Second}
	for _, opt := range opts {
		opt(&config)
	}
	argv := append([]string{}, config.prefix...)
	argv = append(argv, in.Path)
	argv = append(argv, config.args...)
	argv = append(argv, filepath.Join(Root(), "testenv", "subjects", "shapes.py"))

	s := &Subject{t: t, lines: make(chan []byte), exited: make(chan struct{}), patience: config.patience}
	s.cmd = exec.Command(argv[0], argv[1:]...)
	s.cmd.Dir = config.dir
	if config.spaces != 0 {
		s.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: config.spaces}
		if config.spaces&syscall.CLONE_NEWUSER != 0 {
			s.cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
			s.cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
		}
	}
	s.cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1", "PYTHONUNBUFFERED=1", "PYTHONIOENCODING=utf-8")
	s.cmd.Env = append(s.cmd.Env, config.env...)
	s.cmd.Stderr = &s.stderr
	// A grandchild may hold stderr open after the subject has gone.
	s.cmd.WaitDelay = 2 * time.Second
	stdin, err := s.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.stdin = stdin
	stdoutReader, stdoutWriter, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s.cmd.Stdout = stdoutWriter
	if err := s.cmd.Start(); err != nil {
		t.Fatalf("start subject %v: %v", argv, err)
	}
	stdoutWriter.Close()
	s.pid = s.cmd.Process.Pid

	stop := make(chan struct{})
	go func() {
		defer close(s.lines)
		r := bufio.NewReader(stdoutReader)
		for {
			line, err := r.ReadBytes('\n')
			if err != nil {
				return
			}
			select {
			case s.lines <- line:
			case <-stop:
				return
			}
		}
	}()
	go func() {
		s.cmd.Wait()
		close(s.exited)
	}()
	t.Cleanup(func() {
		s.stdin.Close()
		select {
		case <-s.exited:
		case <-time.After(time.Second):
			s.Kill()
		}
		close(stop)
		stdoutReader.Close()
		if t.Failed() {
			t.Logf("subject %v, stderr:\n%s", argv, s.stderr.String())
		}
	})

	var ready struct {
		Ready bool `json:"ready"`
		PID   int  `json:"pid"`
	}
	s.receive(&ready)
	if !ready.Ready {
		t.Fatalf("subject %v did not say that it is ready", argv)
	}
	if config.spaces&syscall.CLONE_NEWPID == 0 {
		s.pid = ready.PID
	}
	return s
}

// PID returns the process ID of the Python process.
func (s *Subject) PID() int { return s.pid }

// Stderr returns what the process has written to stderr, and what targets print.
func (s *Subject) Stderr() string { return s.stderr.String() }

// Call calls the target "shapes:NAME" so many times and returns the results of the
// first 100 calls. An exception is the result "ValueError: …".
func (s *Subject) Call(name string, times int) []any {
	s.t.Helper()
	return s.must(map[string]any{"call": name, "times": times}).Results
}

// CallThreads calls the target so many times in each of so many threads at once.
func (s *Subject) CallThreads(name string, times, threads int) {
	s.t.Helper()
	s.must(map[string]any{"call": name, "times": times, "threads": threads})
}

// Create creates so many generators or coroutines, and starts none.
func (s *Subject) Create(name string, times int) {
	s.t.Helper()
	s.must(map[string]any{"create": name, "times": times})
}

// Eval evaluates an expression in the namespace of the module shapes. The value is
// what encoding/json makes of it (a number is a json.Number), or its repr when JSON
// has no such type.
func (s *Subject) Eval(expr string) any {
	s.t.Helper()
	return s.must(map[string]any{"eval": expr}).Value
}

// Exec executes statements in the namespace of the module shapes.
func (s *Subject) Exec(stmt string) {
	s.t.Helper()
	s.must(map[string]any{"exec": stmt})
}

// MakeFunctions makes so many functions in the file and the module "made", and the list made of them.
func (s *Subject) MakeFunctions(n int) {
	s.t.Helper()
	s.Exec(fmt.Sprintf(`source = "".join("def made_%%d(): pass\n" %% i for i in range(%d))
space = {"__name__": "made"}
exec(compile(source, "made", "exec"), space)
made = [space["made_%%d" %% i] for i in range(%[1]d)]`, n))
}

// Exit makes the process exit with a status, waits for its end and checks that the status is its own.
func (s *Subject) Exit(status int) {
	s.t.Helper()
	s.must(map[string]any{"exit": status})
	select {
	case <-s.exited:
	case <-time.After(10 * time.Second):
		s.t.Fatalf("subject %d was told to exit and still runs after 10 s", s.pid)
	}
	if code := s.cmd.ProcessState.ExitCode(); code != status {
		s.t.Errorf("subject %d was told to exit with %d: %s; stderr:\n%s", s.pid, status, s.cmd.ProcessState, s.stderr.String())
	}
}

// Kill ends the process with SIGKILL and waits for its end.
func (s *Subject) Kill() {
	if p, err := os.FindProcess(s.pid); err == nil && s.pid != s.cmd.Process.Pid {
		p.Kill()
	}
	s.cmd.Process.Kill()
	<-s.exited
}

// Exited is closed when the process has ended.
func (s *Subject) Exited() <-chan struct{} { return s.exited }

type subjectAnswer struct {
	OK      bool   `json:"ok"`
	Error   string `json:"error"`
	Results []any  `json:"results"`
	Value   any    `json:"value"`
}

func (s *Subject) must(request map[string]any) subjectAnswer {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	line, err := json.Marshal(request)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.stdin.Write(append(line, '\n')); err != nil {
		s.t.Fatalf("subject %d, request %s: %v; stderr:\n%s", s.pid, line, err, s.stderr.String())
	}
	var answer subjectAnswer
	s.receive(&answer)
	if !answer.OK {
		s.t.Fatalf("subject %d, request %s: %s", s.pid, line, answer.Error)
	}
	return answer
}

func (s *Subject) receive(into any) {
	s.t.Helper()
	select {
	case line, ok := <-s.lines:
		if !ok {
			<-s.exited
			s.t.Fatalf("subject %d ended: %v; stderr:\n%s", s.pid, s.cmd.ProcessState, s.stderr.String())
		}
		d := json.NewDecoder(bytes.NewReader(line))
		d.UseNumber()
		if err := d.Decode(into); err != nil {
			s.t.Fatalf("subject %d answered %q: %v", s.pid, line, err)
		}
	case <-time.After(s.patience):
		s.t.Fatalf("subject %d gave no answer in %v; stderr:\n%s", s.pid, s.patience, s.stderr.String())
	}
}

// lockedBuffer is a buffer that the process's output and the test use at once.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

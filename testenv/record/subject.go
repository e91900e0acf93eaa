package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"sca-probe/pkg/pyframes"
	"sca-probe/testenv"
)

// patience is how long the process may take to answer everything.
const patience = 2 * time.Minute

// A subject is a process that runs testenv/subjects/shapes.py, and answers its requests.
type subject struct {
	pid     int
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	answers *json.Decoder
	timer   *time.Timer
}

// enter runs the interpreter $1/bin/$2 where the project $0 is at /mnt/project, and nothing else of the
// machine shows in its memory.
const enter = `
mount -t tmpfs none /mnt
mkdir /mnt/project /mnt/python
mount --bind "$0" /mnt/project
mount --bind "$1" /mnt/python
cd /mnt # compiled files name where they were compiled
exec env -i HOME=/mnt PYTHONDONTWRITEBYTECODE=1 PYTHONNOUSERSITE=1 PYTHONPYCACHEPREFIX=/mnt/cache "/mnt/python/bin/$2" /mnt/project/testenv/subjects/shapes.py
`

func start(python string) (*subject, error) {
	program, err := filepath.EvalSymlinks(python)
	if err != nil {
		return nil, err
	}
	if _, err := pyframes.OpenInterpreter(program); err != nil {
		return nil, err
	}
	bin := filepath.Dir(program)
	if filepath.Base(bin) != "bin" {
		return nil, fmt.Errorf("it is in no folder named bin, beside which its libraries would be")
	}
	s := &subject{cmd: exec.Command("unshare", "--mount", "sh", "-ec", enter, testenv.Root(), filepath.Dir(bin), filepath.Base(program))}
	s.cmd.Stderr = os.Stderr
	if s.stdin, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	s.answers = json.NewDecoder(stdout)
	s.timer = time.AfterFunc(patience, func() { _ = s.cmd.Process.Kill() })
	var ready struct {
		PID int `json:"pid"`
	}
	if err := s.answers.Decode(&ready); err != nil {
		s.end()
		return nil, fmt.Errorf("it did not start: %w", err)
	}
	s.pid = ready.PID
	return s, nil
}

func (s *subject) end() {
	s.stdin.Close()
	_ = s.cmd.Wait()
	s.timer.Stop()
}

// ask asks one request, and reads what it evaluates to into value, if that is not nil.
func (s *subject) ask(request map[string]any, value any) error {
	if err := json.NewEncoder(s.stdin).Encode(request); err != nil {
		return err
	}
	var answer struct {
		OK    bool            `json:"ok"`
		Error string          `json:"error"`
		Value json.RawMessage `json:"value"`
	}
	if err := s.answers.Decode(&answer); err != nil {
		return fmt.Errorf("request %v: %w", request, err)
	}
	if !answer.OK {
		return fmt.Errorf("request %v: %s", request, answer.Error)
	}
	if value == nil {
		return nil
	}
	return json.Unmarshal(answer.Value, value)
}

// targets returns the table in testenv/subjects/targets.py.
func (s *subject) targets() ([]pyframes.KnownTarget, error) {
	if err := s.ask(map[string]any{"exec": "import targets"}, nil); err != nil {
		return nil, err
	}
	var cases []testenv.TargetCase
	if err := s.ask(map[string]any{"eval": testenv.TargetTable}, &cases); err != nil {
		return nil, err
	}
	known := make([]pyframes.KnownTarget, len(cases))
	for i, c := range cases {
		known[i] = pyframes.KnownTarget(c)
	}
	return known, nil
}

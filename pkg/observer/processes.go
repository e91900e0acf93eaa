package observer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sca-probe/pkg/pyframes"
	"sca-probe/pkg/pyframes/evalloop"
)

// A PythonProcess is one process that runs CPython, and what can be done with it.
type PythonProcess struct {
	PID int `json:"pid"`
	// NamespacePID is the PID that the process itself sees: another one in a container.
	NamespacePID int    `json:"namespace_pid"`
	Container    string `json:"container,omitempty"` // ID
	Unit         string `json:"unit,omitempty"`      // of systemd: "gunicorn.service"
	Version      string `json:"version,omitempty"`
	Path         string `json:"path,omitempty"`    // of the file with the interpreter, as the process sees it
	Linkage      string `json:"linkage,omitempty"` // "static" or "shared"
	Stripped     bool   `json:"stripped,omitempty"`
	BuildID      string `json:"build_id,omitempty"`

	Started *time.Time `json:"started,omitempty"`
	Uptime  float64    `json:"uptime_seconds,omitempty"`

	// Engine is nil when the process runs none, and when that is not known: EngineProblem has why.
	Engine        *EngineReport `json:"engine"`
	EngineProblem string        `json:"engine_problem,omitempty"`

	// Memory says whether functions can be resolved and their evidence read, EvalLoop whether their
	// starts can be counted and followed.
	Memory   Support `json:"memory"`
	EvalLoop Support `json:"eval_loop"`
}

// An EngineReport is what the engine in a process says of itself.
type EngineReport struct {
	State   pyframes.EngineState `json:"state"`
	Forks   int                  `json:"forks"`
	Numbers map[string]uint64    `json:"numbers"`
}

// Support says whether something works, and why it does not.
type Support struct {
	Supported bool   `json:"supported"`
	Reason    string `json:"reason,omitempty"`
}

// Processes lists the Python processes on this node, and counts those that this user may not read.
// Call tell, if it is not nil, is told now and then how much is done, of 1.
func Processes(ctx context.Context, tell func(done float64)) (list []PythonProcess, unreadable int, err error) {
	var finder pyframes.Finder
	found, err := finder.Processes(ctx)
	if err != nil {
		return nil, 0, err
	}
	list = []PythonProcess{} // an empty list in JSON, not null
	loops := map[string]Support{}
	for i, s := range found {
		if errors.Is(s.Err, pyframes.ErrPermission) {
			unreadable++
			continue
		}
		list = append(list, describe(&finder, s, loops))
		if tell != nil {
			tell(float64(i+1) / float64(len(found)))
		}
	}
	return list, unreadable, nil
}

const notRead = "its memory cannot be read"

// describe describes one process; loops has what is known of eval loops, by build ID.
func describe(finder *pyframes.Finder, s pyframes.Summary, loops map[string]Support) PythonProcess {
	p := PythonProcess{
		PID: s.PID, NamespacePID: s.NamespacePID, Container: s.Container, Unit: s.Unit, Memory: support(s.Err),
		EvalLoop: Support{Reason: notRead}, EngineProblem: notRead,
	}
	if !s.Started.IsZero() {
		p.Started, p.Uptime = &s.Started, time.Since(s.Started).Round(time.Millisecond).Seconds()
	}
	in := s.Interpreter
	if in == nil {
		return p
	}
	p.Version, p.Path, p.Linkage, p.Stripped, p.BuildID = in.Version.String(), in.Path, in.Linkage, in.Stripped, in.BuildID
	process, err := finder.Open(s.PID)
	if err != nil {
		p.Memory = support(err)
		return p
	}
	defer process.Close()
	p.EngineProblem = ""
	switch engine, err := process.Engine(); {
	case err != nil:
		p.EngineProblem = err.Error()
	case engine != nil:
		p.Engine = &EngineReport{engine.State, engine.Forks, engine.Numbers}
	}
	known, ok := loops[in.BuildID]
	if !ok {
		_, err := evalloop.Find(process.BinaryPath(), in.Version.Major, in.Version.Minor)
		known = support(err)
		if in.BuildID != "" {
			loops[in.BuildID] = known
		}
	}
	p.EvalLoop = known
	return p
}

func support(err error) Support {
	if err != nil {
		return Support{Reason: err.Error()}
	}
	return Support{Supported: true}
}

// Where returns the container, shortened, or the unit that a process is in, "" when it is in neither.
func (p *PythonProcess) Where() string {
	const short = 12
	if len(p.Container) > short {
		return fmt.Sprintf("container %s", p.Container[:short])
	}
	return p.Unit
}

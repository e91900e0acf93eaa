package forks

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"sca-probe/testenv"
)

// A child that is forked while the engine is loading, patches or withdraws many targets, or has a thread waiting in an
// import, has an engine of its own that brings every target into the state that is desired and counts each call.
func TestForkWhileTheEngineIsAtWork(t *testing.T) {
	targets := make([]string, 1000)
	for i := range targets {
		targets[i] = fmt.Sprintf("many:f%d", i)
	}
	for _, moment := range []struct {
		name   string
		wanted int // children born at the moment
	}{{"starting", 5}, {"loading", 5}, {"importing", 5}, {"applying", 10}} {
		t.Run(moment.name, func(t *testing.T) {
			each(t, func(t *testing.T, in testenv.Interpreter) {
				p := newProgram(t, targets...)
				p.start(in, "", filepath.Join(subjects(), "moments.py"), moment.name)
				select {
				case <-p.ended:
				case <-time.After(5 * time.Minute):
					t.Fatal("the program did not end")
				}
				if code := p.cmd.ProcessState.ExitCode(); code != 0 {
					t.Errorf("the program ended with %v", p.cmd.ProcessState)
				}
				born, children := 0, answers[struct {
					During  bool
					Problem string
				}](p)
				for _, child := range children {
					if child.Problem != "" {
						t.Errorf("a child, born at the moment: %t: %s", child.During, child.Problem)
					}
					if child.During {
						born++
					}
				}
				t.Logf("%d of %d children were born at the moment", born, len(children))
				if born < moment.wanted {
					t.Errorf("%d of %d children were born at the moment, want %d", born, len(children), moment.wanted)
				}
			})
		})
	}
}

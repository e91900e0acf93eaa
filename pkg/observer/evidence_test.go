package observer_test

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"sca-probe/pkg/observer"
	"sca-probe/testenv"
)

// A place is where a function is defined: what tells it from others in two processes.
type place struct {
	file string
	line int
	name string // without what it is within, which code objects before 3.11 do not know
}

func placeOf(file string, line int, qualName string) place {
	return place{file, line, qualName[strings.LastIndexByte(qualName, '.')+1:]}
}

// TestEvidenceAgainstCounts watches a process run much of the standard library from before its modules are
// imported, and compares what evidence then says of each function with whether it was counted. That all of
// them are counted is CPython's own account, of a profile function in another process: so an exact window
// tells of every function that ran, on 3.12 too, where evidence misses some.
func TestEvidenceAgainstCounts(t *testing.T) {
	builds := testenv.Observer
	if os.Getenv("SCA_PROBE_TEST_ALL") == "" {
		builds = testenv.OnePerVersion(builds)
	}
	testenv.EachInterpreter(t, builds, func(t *testing.T, in testenv.Interpreter) {
		s := testenv.StartSubject(t, in)
		s.Exec("import workload")
		var files []string
		for _, file := range s.Eval("sys.modules['workload'].FILES").([]any) {
			files = append(files, "/"+file.(string))
		}
		ofWorkload := func(p place) bool {
			return slices.ContainsFunc(files, func(file string) bool { return strings.Contains(p.file, file) })
		}
		report := watch(t, s, observer.WatchOptions{}, func() { s.Exec("sys.modules['workload'].run()") })
		if report.Losses != "" {
			t.Fatalf("not exact: lost %s", report.Losses)
		}
		counted := map[place]bool{}
		for _, f := range report.Functions {
			if p := placeOf(f.File, f.FirstLine, f.QualName); ofWorkload(p) {
				counted[p] = true
			}
		}

		states := map[place]observer.ExecutionState{}
		for _, g := range functionsOf(t, s, observer.FunctionQuery{}).Groups {
			for _, f := range g.Functions {
				// Of several functions at one place, as those that a decorator makes, one that ran is enough.
				if p := placeOf(f.File, f.FirstLine, f.QualName); ofWorkload(p) && states[p] != observer.StateExecuted {
					states[p] = f.State
				}
			}
		}
		var seen, missed, silent int
		for p, state := range states {
			switch {
			case counted[p] && state == observer.StateExecuted:
				seen++
			case counted[p] && state == observer.StateNever:
				t.Errorf("%v is said never to have run, and was counted", p)
			case counted[p]:
				missed++
				if in.Minor != 12 {
					t.Errorf("%v was counted, and left no evidence", p)
				}
			case state == observer.StateExecuted:
				t.Errorf("%v is said to have run, and was not counted", p)
			default:
				silent++
			}
		}
		t.Logf("%d functions: %d ran and are said to have, %d ran and left no evidence, %d did not run", len(states), seen, missed, silent)
		if seen < 400 || silent < 400 {
			t.Errorf("%d functions ran and %d did not: too few to judge by", seen, silent)
		}

		traced := testenv.StartSubject(t, in)
		traced.Exec("import workload")
		account := map[place]bool{}
		for _, row := range traced.Eval("sys.modules['workload'].traced()").([]any) {
			cells := row.([]any)
			var line int
			if _, err := fmt.Sscan(cells[1].(json.Number).String(), &line); err != nil {
				t.Fatal(err)
			}
			p := place{cells[0].(string), line, cells[2].(string)}
			// Of what is freed soon after it ran, as the body of a module, no name can be read.
			if _, held := states[p]; held {
				account[p] = true
			}
		}
		for p := range account {
			if !counted[p] {
				t.Errorf("%v ran by CPython's own account, and was not counted", p)
			}
		}
		for p := range counted {
			if _, held := states[p]; held && !account[p] {
				t.Errorf("%v was counted, and did not run by CPython's own account", p)
			}
		}
	})
}

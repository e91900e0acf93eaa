// Package libtest runs CPython's own tests with every function that they run patched, and compares
// the outcome of each test with a run without the engine.
package libtest

import (
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sca-probe/testenv"
)

var all = flag.Bool("all", false, "run every module, not only the quick ones: 40 minutes on two cores")

// TestLibrary leaves the output of every run in build/libtest.
func TestLibrary(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Engine|testenv.TestSuite, func(t *testing.T, in testenv.Interpreter) {
		for _, m := range modules {
			if !m.within(in.Minor) || !*all && !m.quick {
				continue
			}
			t.Run(m.name, func(t *testing.T) {
				t.Parallel()
				testModule(t, in.Minor, runner{
					python:  in.Path,
					module:  m.name,
					exclude: excluded(in.Minor, m.name),
					logs:    filepath.Join(testenv.Root(), "build", "libtest", in.Name, m.name),
				})
			})
		}
	})
}

func testModule(t *testing.T, minor int, r runner) {
	if err := os.MkdirAll(r.logs, 0o755); err != nil {
		t.Fatal(err)
	}
	wanted := r.targets(t)
	if wanted.Left > 0 {
		t.Errorf("%d functions were left out: Remote Configuration takes no more", wanted.Left)
	}
	without := r.run(t, "without", nil)
	if len(without) == 1 {
		t.Fatalf("no test ran without the engine (%s): see %s", without[exitStatus], r.logs)
	}
	with, state := r.runPatched(t, wanted.Targets)
	// An import waits for its functions to be patched, but not for ever: on a machine so busy that one went on, what
	// ran first was not counted, and nothing is wrong.
	for try := 1; try < 3 && state.Stats.LateImports > 0; try++ {
		if _, missed := state.starts(wanted, with, uncounted(minor, r.module)); len(missed) == 0 {
			break
		}
		t.Logf("%d imports did not wait until their functions were patched: once more", state.Stats.LateImports)
		with, state = r.runPatched(t, wanted.Targets)
	}
	state.check(t, wanted, with, uncounted(minor, r.module))

	expected := expectedDifferences(minor, r.module)
	if len(expected) > 0 && with[exitStatus] == testsFailed {
		delete(without, exitStatus)
		delete(with, exitStatus)
	}
	for _, id := range slices.Sorted(maps.Keys(union(without, with))) {
		was, is := without[id], with[id]
		known, ok := expected[id]
		switch {
		case was == is && ok:
			t.Errorf("%s: %s with the engine as without: take it off the list of differences", id, or(is))
		case was != is && !ok:
			t.Errorf("%s: %s without the engine, %s with it", id, or(was), or(is))
		case was != is && known != is:
			t.Errorf("%s: %s with the engine, listed as %s", id, or(is), or(known))
		}
		delete(expected, id)
	}
	for id := range expected {
		t.Errorf("%s is on the list of differences, and no such test ran", id)
	}
}

func or(outcome string) string {
	if outcome == "" {
		return "not run"
	}
	return outcome
}

func union(a, b map[string]string) map[string]string {
	u := maps.Clone(a)
	maps.Copy(u, b)
	return u
}

// A state is what the engine said as the tests ended.
type state struct {
	Targets []struct {
		Target, State, Reason string
		Hits                  uint64
	}
	Stats struct {
		LateImports int `json:"imports_late"`
	}
}

// runPatched runs the tests as a production process runs: the child processes that they start have
// the engine too.
func (r runner) runPatched(t *testing.T, targets []string) (map[string]string, state) {
	t.Helper()
	payload, err := json.Marshal(testenv.Payload(targets...))
	if err != nil {
		t.Fatal(err)
	}
	rcFile, dump := filepath.Join(r.logs, "targets.json"), filepath.Join(r.logs, "state.json")
	if err := os.WriteFile(rcFile, payload, 0o644); err != nil {
		t.Fatal(err)
	}
	os.Remove(dump) // an earlier run's
	outcomes := r.run(t, "with", append([]string{
		"PYTHONPATH=" + filepath.Dir(script(t, "dump/usercustomize.py")), "LIBTEST_DUMP=" + dump,
	}, testenv.Gates...), testenv.ProbePath(t), "run", "--rc-file", rcFile, "--")

	var s state
	data, err := os.ReadFile(dump)
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		t.Errorf("the engine's state at the end of the tests: %v", err)
	}
	return outcomes, s
}

// starts returns how many tests that passed the engine counted the start of, and those of which it did not. Those
// that are listed as such are neither, and taken off the list.
func (s state) starts(wanted targets, outcomes map[string]string, listed map[string]bool) (counted int, missed []string) {
	hits := map[string]uint64{}
	for _, target := range s.Targets {
		hits[target.Target] = target.Hits
	}
	for id, target := range wanted.Tests {
		switch {
		case outcomes[id] != "passed":
		case hits[target] > 0:
			counted++
		case listed[id]:
			delete(listed, id)
		default:
			missed = append(missed, id)
		}
	}
	slices.Sort(missed)
	return counted, missed
}

// check tells whether the functions were patched while the tests ran: the engine must have counted
// the start of each test that passed, but for those that are listed.
func (s state) check(t *testing.T, wanted targets, outcomes map[string]string, listed map[string]bool) {
	t.Helper()
	patched, run := 0, 0
	for _, target := range s.Targets {
		if target.State == "patched" {
			patched++
		}
		if target.Hits > 0 {
			run++
		}
	}
	tests := 0
	for id := range wanted.Tests {
		if outcomes[id] == "passed" {
			tests++
		}
	}
	counted, missed := s.starts(wanted, outcomes, listed)
	t.Logf("%d tests; %d of %d targets patched, %d of them run; %d of %d test functions counted",
		len(outcomes)-1, patched, len(wanted.Targets), run, counted, tests)
	if counted == 0 && tests > 0 || run == 0 {
		t.Error("nothing was patched")
	}
	if len(missed) > 0 {
		t.Errorf("%d tests passed and were not counted: %s", len(missed), strings.Join(missed, ", "))
	}
	for id := range listed {
		t.Errorf("%s is listed as not counted, and was or did not pass", id)
	}
}

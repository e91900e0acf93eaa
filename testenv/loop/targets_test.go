package loop

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"sca-probe/testenv"
)

// refusals are the states and words by which the engine refuses a kind of target.
var refusals = map[string]struct{ state, says string }{
	"not-imported":        {"pending", "not imported"},
	"not-found":           {"unresolved", "no such name"},
	"not-python-function": {"unresolved", "not a Python function"},
	"ambiguous":           {"unresolved", "functions, not of one"},
}

// TestEveryFormOfTarget resolves, in the process, the table of targets that the observer resolves from
// outside, and expects the same answers.
func TestEveryFormOfTarget(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Engine, func(t *testing.T, in testenv.Interpreter) {
		s := startService(t, in, append([]string{"PYTHONPATH=" + testenv.PackagePath(t, in, "wrapt")}, testenv.Gates...)...)
		cases := testenv.TargetCases(t, s.Subject)
		var targets []string
		for _, c := range cases {
			targets = append(targets, c.Target)
		}
		if !slices.Contains(targets, "targets:by_wrapt") {
			t.Error("there are no cases with wrapt")
		}
		s.configure(append(targets, "shapes:plain")...)
		s.await("shapes:plain", "patched") // the last one: all others have been tried
		rows := s.Eval(`(lambda engine, originals: [
			(t["target"], t["state"], t.get("reason", ""), originals.get(t.get("hook")))
			for t in __import__("json").loads(engine.targets())])(
			sys.modules["sca_probe._engine"],
			{id(h): id(h.original) for h in sys.modules["sca_probe._engine"].hooks()})`).([]any)
		got := map[string][]string{}
		for _, row := range rows {
			var cells []string
			for _, cell := range row.([]any) {
				cells = append(cells, fmt.Sprint(cell))
			}
			got[cells[0]] = cells[1:]
		}
		for _, c := range cases {
			row, known := got[c.Target]
			switch {
			case !known:
				t.Errorf("%s: the engine does not know it", c.Target)
			case strings.HasPrefix(c.Target, "_frozen_importlib:"):
				// The observer resolves it; the engine stands on it, and declines.
				if row[0] != "unresolved" || !strings.Contains(row[1], "frozen import system") {
					t.Errorf("%s: %v, want it declined as part of the import system", c.Target, row)
				}
			case c.Refused != "":
				want := refusals[c.Refused]
				if row[0] != want.state || !strings.Contains(row[1], want.says) {
					t.Errorf("%s: %v, want %s with %q", c.Target, row, want.state, want.says)
				}
			case row[0] != "patched" || row[2] != fmt.Sprint(c.Code):
				t.Errorf("%s: %v, want it patched and its original at %d", c.Target, row, c.Code)
			}
		}
		s.configure()
		s.eventually(`all(t["state"] == "reverted" for t in __import__("sca_probe").targets())`)
		for i, c := range testenv.TargetCases(t, s.Subject) {
			if c != cases[i] {
				t.Errorf("%s: code at %d after the withdrawal, want the original at %d", c.Target, c.Code, cases[i].Code)
			}
		}
	})
}

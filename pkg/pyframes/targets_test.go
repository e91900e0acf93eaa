package pyframes_test

import (
	"errors"
	"slices"
	"testing"

	"sca-probe/pkg/pyframes"
	"sca-probe/pkg/rc"
	"sca-probe/testenv"
)

// TestTargets resolves every form of target, by the table that the engine is tested with too.
func TestTargets(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		s := testenv.StartSubject(t, in, testenv.WithEnv("PYTHONPATH="+testenv.PackagePath(t, in, "wrapt")))
		cases := testenv.TargetCases(t, s)
		if !slices.ContainsFunc(cases, func(c testenv.TargetCase) bool { return c.Target == "targets:by_wrapt" }) {
			t.Error("there are no cases with wrapt")
		}
		p := open(t, s)
		for _, c := range cases {
			target, err := rc.ParseTarget(c.Target)
			if err != nil {
				t.Fatal(err)
			}
			f, err := p.Resolve(target)
			var unresolved *pyframes.UnresolvedError
			switch {
			case errors.As(err, &unresolved):
				if unresolved.Kind.String() != c.Refused {
					t.Errorf("%s: %v (%s), want %q, %#x", c.Target, err, unresolved.Kind, c.Refused, c.Code)
				}
			case err != nil:
				t.Errorf("%s: %v", c.Target, err)
			case c.Refused != "":
				t.Errorf("%s: %+v, want a refusal as %s", c.Target, f, c.Refused)
			case f.Code.Addr != c.Code:
				t.Errorf("%s: %s at %#x, want %#x", c.Target, f.Code.QualName, f.Code.Addr, c.Code)
			}
		}
	})
}

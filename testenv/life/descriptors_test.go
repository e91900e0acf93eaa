package life

import (
	"strings"
	"testing"

	"sca-probe/testenv"
)

// A program may close all descriptors, as daemons do, and whoever reads from its pipes learns of it.
func TestDescriptorsAreTheProgramsOwn(t *testing.T) {
	for _, table := range []string{"own", "shared"} {
		t.Run(table, func(t *testing.T) {
			testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Engine), func(t *testing.T, in testenv.Interpreter) {
				p := program{name: "descriptors.py", args: []string{table, testenv.ProbePath(t)}}
				said := p.succeed(t, in, nil).Stderr
				want := 0
				if table == "shared" {
					want = 1
				}
				if got := strings.Count(said, "halted"); got != want {
					t.Errorf("it should say %d times that it has halted: %q", want, said)
				}
			})
		})
	}
}

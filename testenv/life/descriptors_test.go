package life

import (
	"testing"

	"sca-probe/testenv"
)

// A program may close all descriptors, as daemons do, and whoever reads from its pipes learns of it.
func TestDescriptorsAreTheProgramsOwn(t *testing.T) {
	for _, table := range []string{"own", "shared"} {
		t.Run(table, func(t *testing.T) {
			testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Engine), func(t *testing.T, in testenv.Interpreter) {
				program{name: "descriptors.py", args: []string{table}}.succeed(t, in, nil)
			})
		})
	}
}

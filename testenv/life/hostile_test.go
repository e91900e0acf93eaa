package life

import (
	"testing"

	"sca-probe/testenv"
)

// Objects that run code when they are looked at are not run, and what a failure leaves is a whole function.
func TestHostileObjects(t *testing.T) {
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Engine), func(t *testing.T, in testenv.Interpreter) {
		program{name: "hostile.py", args: []string{"2"}}.succeed(t, in, nil)
	})
}

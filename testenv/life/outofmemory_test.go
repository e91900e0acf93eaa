package life

import (
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"sca-probe/testenv"
)

// The engine runs out of memory at each of its allocations in turn: functions are what they were or patched,
// and once there is memory again the engine does what it could not do.
func TestOutOfMemory(t *testing.T) {
	preload := testenv.Compile(t, "-O1", "-shared", "-fPIC", filepath.Join("testdata", "failing.c"), "-ldl")
	rounds := 40
	if all() {
		rounds = 200
	}
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Engine), func(t *testing.T, in testenv.Interpreter) {
		var result struct{ Refused, Failures int }
		ofLibc := func(how string, n int, env ...string) program {
			return program{name: "outofmemory.py", args: []string{how, strconv.Itoa(n)}, env: append(env, "LD_PRELOAD="+preload)}
		}
		for source, env := range map[string][]string{"file": nil, "push": {"SCA_PROBE_RC_SOURCE=push"}} {
			t.Run("of libc, "+source, func(t *testing.T) {
				ofLibc("engine", rounds, env...).succeed(t, in, &result)
				if result.Refused < 20 || result.Failures == 0 {
					t.Errorf("%d allocations were refused and %d failures counted: the test shows nothing", result.Refused, result.Failures)
				}
			})
			t.Run("of libc at the start, "+source, func(t *testing.T) {
				refused := 0
				for result.Refused = 1; result.Refused > 0; refused++ {
					ofLibc("start", refused+1, env...).succeed(t, in, &result)
				}
				if refused < 3 {
					t.Errorf("%d allocations were refused: the test shows nothing", refused)
				}
			})
		}
		t.Run("of CPython", func(t *testing.T) {
			if exec.Command(in.Path, "-c", "import _testcapi").Run() != nil {
				t.Skip("this build has no _testcapi to refuse memory by; others have")
			}
			program{name: "outofmemory.py", args: []string{"python", strconv.Itoa(rounds)}}.succeed(t, in, &result)
			if result.Failures == 0 {
				t.Error("no failure was counted: the test shows nothing")
			}
		})
	})
}

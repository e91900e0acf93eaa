package life

import (
	"strings"
	"testing"

	"sca-probe/testenv"
)

func TestSignalsAreTheProgramsOwn(t *testing.T) {
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Engine), func(t *testing.T, in testenv.Interpreter) {
		seconds := "2"
		if all() {
			seconds = "30"
		}
		for _, args := range [][]string{{"dispositions"}, {"handled"}, {"storm", seconds}} {
			t.Run(args[0], func(t *testing.T) {
				program{name: "signals.py", args: args}.succeed(t, in, nil)
			})
		}
	})
}

func TestBrokenStderrEndsNothing(t *testing.T) {
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Engine), func(t *testing.T, in testenv.Interpreter) {
		for _, disposition := range []string{"ignored", "default"} {
			program{name: "signals.py", args: []string{"broken-stderr", disposition}, env: []string{"SCA_PROBE_LOG_LEVEL=debug"}}.
				succeed(t, in, nil)
		}
	})
}

// A program that crashes ends as it would without the engine, and faulthandler tells as much.
func TestCrashesAreUnchanged(t *testing.T) {
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Engine), func(t *testing.T, in testenv.Interpreter) {
		for _, kind := range []string{"null", "kill", "abort", "fpe", "pipe", "term", "thread"} {
			for _, faulthandler := range []string{"never", "before", "after"} {
				p := program{name: "signals.py", args: []string{"crash", kind, faulthandler}}
				without := p.run(t, in)
				p.env = testenv.Gates
				with := p.run(t, in)
				if without.Signal == 0 || with.Signal != without.Signal || with.Code != without.Code {
					t.Errorf("%s, faulthandler %s: %v (%d), without the engine %v (%d)\n%s",
						kind, faulthandler, with.Signal, with.Code, without.Signal, without.Code, with.Stderr)
				}
				for _, said := range []string{"Fatal Python error: ", "Current thread 0x", "(most recent call first)", "signals.py"} {
					if strings.Contains(with.Stderr, said) != strings.Contains(without.Stderr, said) {
						t.Errorf("%s, faulthandler %s: %q is in one stderr only\n--- with:\n%s--- without:\n%s",
							kind, faulthandler, said, with.Stderr, without.Stderr)
					}
				}
			}
		}
	})
}

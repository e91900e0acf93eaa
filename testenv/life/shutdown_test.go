package life

import (
	"fmt"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sca-probe/testenv"
)

// A program that ends while a thousand targets come and go ends as it would without the engine.
func TestShutdown(t *testing.T) {
	times := 2
	if all() {
		times = 100
	}
	for _, how := range []string{"end", "exit", "exception", "os-exit", "atexit", "atexit-raises", "thread-exits",
		"thread-outlives", "import", "atexit-cleared", "finalizers", "interrupt", "terminate"} {
		t.Run(how, func(t *testing.T) {
			testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Engine), func(t *testing.T, in testenv.Interpreter) {
				p := program{name: "shutdown.py", args: []string{how}}
				run := func() outcome {
					o := p.run(t, in)
					// CPython 3.10 itself crashes so in one of 100 runs, with the engine as without: COMPUTE_EVAL_BREAKER
					// (Python/ceval.c) finds a daemon thread's interpreter gone.
					for try := 1; try < 4 && in.Minor == 10 && how == "atexit-cleared" && o.Signal == syscall.SIGSEGV; try++ {
						o = p.run(t, in)
					}
					return o
				}
				want := run()
				for i := range times {
					p.env = append([]string{fmt.Sprintf("EXIT_AFTER=%f", 0.02+0.011*float64(i%10))}, testenv.Gates...)
					got := run()
					if diff := cmp.Diff(want, got, cmp.FilterPath(func(p cmp.Path) bool { return p.String() == "Stderr" },
						cmp.Comparer(sameErrors))); diff != "" {
						t.Fatalf("run %d (-without the engine +with it):\n%s\nstderr without:\n%s\nwith:\n%s", i, diff, want.Stderr, got.Stderr)
					}
				}
			})
		})
	}
}

// sameErrors compares the tracebacks in two outputs by their last lines.
func sameErrors(a, b string) bool {
	return strings.Join(errorsIn(a), "\n") == strings.Join(errorsIn(b), "\n")
}

var address = regexp.MustCompile(`0x[0-9a-f]+`)

func errorsIn(stderr string) (errors []string) {
	for line := range strings.Lines(stderr) {
		if line[0] != ' ' && line[0] != '\n' {
			errors = append(errors, address.ReplaceAllString(strings.TrimSpace(line), "0x…"))
		}
	}
	return errors
}

// A subinterpreter gets no engine and says so once; the main interpreter's goes on.
func TestSubinterpreters(t *testing.T) {
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Engine), func(t *testing.T, in testenv.Interpreter) {
		p := program{name: "subinterpreters.py", env: testenv.Gates}
		o := p.run(t, in)
		if o.Code != 0 || o.Signal != 0 {
			t.Fatalf("exit code %d, signal %v\n%s", o.Code, o.Signal, o.Stderr)
		}
		want := 1
		if strings.Contains(o.Stdout, "own GIL") {
			want = 2
		}
		if got := strings.Count(o.Stderr, "the engine stays off: subinterpreters are not supported"); got != want {
			t.Errorf("%d refusals for %d subinterpreters:\n%s", got, want, o.Stderr)
		}
	})
}

package life

import (
	"fmt"
	"os"
	"testing"
	"time"

	"sca-probe/testenv"
)

// TestSoak patches and reverts without pause while threads, coroutines and greenlets call the functions. In
// `make test-all` it lasts ten minutes a version, and SCA_PROBE_SOAK_SECONDS says otherwise.
func TestSoak(t *testing.T) {
	seconds := "2"
	if all() {
		seconds = "600"
	}
	if s := os.Getenv("SCA_PROBE_SOAK_SECONDS"); s != "" {
		seconds = s
	}
	length, err := time.ParseDuration(seconds + "s")
	if err != nil {
		t.Fatal(err)
	}
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Engine), func(t *testing.T, in testenv.Interpreter) {
		soak(t, in, length)
	})
}

// The development mode's checks of memory, of what the GIL guards and of warnings find nothing.
func TestSoakInDevelopmentMode(t *testing.T) {
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Engine), func(t *testing.T, in testenv.Interpreter) {
		soak(t, in, 0, "-X", "dev")
	})
}

// soak lasts for the time that it is given, and on a busy machine longer: until enough was patched and
// reverted, or soak.py's patience ends.
func soak(t *testing.T, in testenv.Interpreter, length time.Duration, python ...string) {
	p := program{
		name:    "soak.py",
		args:    []string{fmt.Sprint(length.Seconds()), "500"}, // each target that comes and goes, five times
		python:  python,
		imports: "gevent",
		timeout: length + 4*time.Minute,
	}
	var result struct {
		Targets, Calls, Patches, Reverts, Toggles int
		Gevent                                    string
	}
	p.succeed(t, in, &result)
	t.Logf("%+v", result)
}

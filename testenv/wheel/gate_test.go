package wheel

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sca-probe/testenv"
)

// What a program says of the engine in it, when it has started.
type found struct {
	Package bool // sca_probe is imported
	Waits   bool // AppSec may be enabled at run time, and is waited for
	Mapped  bool // a file of the engine is
	Loaded  bool // the engine's module is
}

// report prints a found.
const report = `
import json, sys
runtime = getattr(sys.modules.get("ddtrace.appsec.sca.runtime"), "_runtime", None)
with open("/proc/self/maps") as maps:
    mapped = "_engine" in maps.read()
loaded = sys.modules.get("sca_probe._engine")
print(json.dumps({"Package": "sca_probe" in sys.modules, "Waits": runtime is not None and not runtime.running,
                  "Mapped": mapped, "Loaded": loaded is not None}))
`

// The outcomes of a gate.
var (
	nothing = found{}                                          // not even asked
	closed  = found{Package: true}                             // asked, and closed for good
	waiting = found{Package: true, Waits: true}                // AppSec is off, and Remote Configuration can enable it
	open    = found{Package: true, Mapped: true, Loaded: true} // the engine runs
)

// gateOf runs a program in an environment and says what the gate made of it.
func gateOf(t *testing.T, e environment, prefix []string, env []string) found {
	t.Helper()
	argv := append(append([]string{}, prefix...), e.bin("python"), "-c", report)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = t.TempDir()
	cmd.Env = append(append(os.Environ(), env...), "PYTHONDONTWRITEBYTECODE=1",
		// No Agent: nothing is to come from outside.
		"DD_TRACE_AGENT_URL=http://127.0.0.1:1", "DD_INSTRUMENTATION_TELEMETRY_ENABLED=false")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, stderr.String())
	}
	var got found
	if err := json.Unmarshal(output, &got); err != nil {
		t.Fatalf("%s: %v", output, err)
	}
	return got
}

const unset = "unset"

// combinations are all of the gate's variables, each unset, off and on.
func combinations(f func(detection, appsec, sca string, env []string)) {
	values := []string{unset, "0", "1"}
	for _, detection := range values {
		for _, appsec := range values {
			for _, sca := range values {
				var env []string
				for i, value := range []string{detection, appsec, sca} {
					if name, _, _ := strings.Cut(testenv.Gates[i], "="); value != unset {
						env = append(env, name+"="+value)
					}
				}
				f(detection, appsec, sca, env)
			}
		}
	}
}

func TestGateBesideDdtrace(t *testing.T) {
	testenv.EachDdtraceRelease(t, func(t *testing.T, r release) {
		if r != newest && os.Getenv("SCA_PROBE_TEST_ALL") == "" {
			t.Skip("`make test-all` covers this")
		}
		e := withWheel(t, r)
		run := []string{e.bin("ddtrace-run")}
		combinations(func(detection, appsec, sca string, env []string) {
			want := closed
			switch {
			case detection != "1":
				want = nothing
			case sca != "1":
			case appsec == "1":
				want = open
			case appsec == unset: // what one-click activation takes; an explicit 0 it does not override
				want = waiting
			}
			t.Run(fmt.Sprintf("detection %s, AppSec %s, SCA %s", detection, appsec, sca), func(t *testing.T) {
				t.Parallel()
				if got := gateOf(t, e, run, env); got != want {
					t.Errorf("got %+v, want %+v", got, want)
				}
			})
		})
		t.Run("true", func(t *testing.T) {
			t.Parallel()
			if got := gateOf(t, e, run, []string{"DD_SCA_DETECTION_ENABLED=true", "DD_APPSEC_ENABLED=True", "DD_APPSEC_SCA_ENABLED=true"}); got != open {
				t.Errorf("got %+v, want %+v", got, open)
			}
		})
		t.Run("no Remote Configuration that could enable AppSec", func(t *testing.T) {
			t.Parallel()
			if got := gateOf(t, e, run, []string{testenv.Gates[0], testenv.Gates[2], "DD_REMOTE_CONFIGURATION_ENABLED=false"}); got != closed {
				t.Errorf("got %+v, want %+v", got, closed)
			}
		})
		t.Run("ddtrace does not start", func(t *testing.T) {
			t.Parallel()
			if got := gateOf(t, e, nil, testenv.Gates); got != closed {
				t.Errorf("got %+v, want %+v", got, closed)
			}
		})
		t.Run("AWS Lambda", func(t *testing.T) {
			t.Parallel()
			if got := gateOf(t, e, run, append([]string{"AWS_LAMBDA_FUNCTION_NAME=f"}, testenv.Gates...)); got != closed {
				t.Errorf("got %+v, want %+v", got, closed)
			}
		})
	})
}

// TestGateIsWhatDdtraceSees sets AppSec and SCA where only ddtrace reads them: in the files of the Agent's
// configuration of applications, of which one goes before the variables and one after.
func TestGateIsWhatDdtraceSees(t *testing.T) {
	e := withWheel(t, newest)
	file := func(t *testing.T, variable, enabled string) string {
		path := filepath.Join(t.TempDir(), "application_monitoring.yaml")
		text := fmt.Sprintf("apm_configuration_default:\n  DD_APPSEC_ENABLED: %[1]s\n  DD_APPSEC_SCA_ENABLED: %[1]s\n", enabled)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return variable + "=" + path
	}
	run := []string{e.bin("ddtrace-run")}
	if got := gateOf(t, e, run, []string{testenv.Gates[0], file(t, "_DD_SC_LOCAL_FILE_OVERRIDE", "true")}); got != open {
		t.Errorf("enabled in the machine's file, no variable: got %+v, want %+v", got, open)
	}
	if got := gateOf(t, e, run, append([]string{file(t, "_DD_SC_MANAGED_FILE_OVERRIDE", "false")}, testenv.Gates...)); got != closed {
		t.Errorf("disabled in the fleet's file, enabled by variables: got %+v, want %+v", got, closed)
	}
}

func TestGateWithoutDdtrace(t *testing.T) {
	e := without(t)
	file := filepath.Join(t.TempDir(), "none.json")
	combinations(func(detection, appsec, sca string, env []string) {
		want := closed
		if detection != "1" {
			want = nothing
		} else if appsec == "1" && sca == "1" {
			want = open
		}
		t.Run(fmt.Sprintf("detection %s, AppSec %s, SCA %s", detection, appsec, sca), func(t *testing.T) {
			if got := gateOf(t, e, nil, append(env, "SCA_PROBE_RC_SOURCE="+file)); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	})
}

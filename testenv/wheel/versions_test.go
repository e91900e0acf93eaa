package wheel

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sca-probe/testenv"
)

// A way is one of the ways to start a program with the engine.
type way struct {
	name        string
	environment func(*testing.T, release) environment
	prefix      func(*testing.T, environment) []string
	auto        bool // the program imports ddtrace.auto
}

var threeWays = []way{
	{"ddtrace-run", withWheel, func(_ *testing.T, e environment) []string { return []string{e.bin("ddtrace-run")} }, false},
	{"ddtrace.auto", withWheel, func(*testing.T, environment) []string { return nil }, true},
	{"sca-probe run", withoutWheel, func(t *testing.T, e environment) []string {
		return []string{testenv.ProbePath(t), "run", "--", e.bin("ddtrace-run")}
	}, false},
}

// TestEachLine has each line of ddtrace, started in each way, deliver a configuration that was there before the start,
// report a hit, withdraw the configuration, and deliver one that comes later.
func TestEachLine(t *testing.T) {
	testenv.EachDdtraceRelease(t, func(t *testing.T, r release) {
		for _, way := range threeWays {
			t.Run(way.name, func(t *testing.T) {
				agent := testenv.StartTestAgent(t)
				payload := testenv.Payload(map[string]any{
					"target": "requests.utils:to_key_val_list", "package": "requests", "advisories": []string{"GHSA-of-this-test"},
				})
				agent.Configure(configuration, payload)
				e := way.environment(t, r)
				p := start(t, e, way.prefix(t, e), append(agentOf(agent), testenv.Gates...)...)
				if way.auto {
					p.Exec("import ddtrace.auto")
				}
				p.Exec("import requests")
				p.until(isPatched)
				p.Exec("requests.utils.to_key_val_list({})")

				// 2.x and 3.x have no report of reachability: there a hit is a metric.
				want := `"metric":"sca_probe.hits"`
				if r.Line() == "4" {
					want = `{\"id\":\"GHSA-of-this-test\",\"reached\":[{\"path\":`
				}
				p.awaitTelemetry(agent, want)

				agent.Configure(another, testenv.Payload[any]())
				p.until(isReverted)
				p.Exec("ORIGINAL = requests.utils.to_key_val_list.__code__")
				agent.Configure(configuration, payload)
				p.until(isPatched)
				if p.Eval("requests.utils.to_key_val_list.__code__ is ORIGINAL") == true {
					t.Error("patched, the function has its code still")
				}
				agent.Configure(another, testenv.Payload[any]())
				p.until(isReverted)
				if p.Eval("requests.utils.to_key_val_list.__code__ is ORIGINAL") != true {
					t.Error("the function did not get its code back")
				}
			})
		}
	})
}

// awaitTelemetry waits until the Agent was sent a text, but for spaces, as telemetry.
func (p *program) awaitTelemetry(agent *testenv.TestAgent, want string) {
	p.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		for _, request := range agent.Requests() {
			body := strings.ReplaceAll(string(request.Body), " ", "")
			if strings.Contains(request.URL, "telemetry") && strings.Contains(body, want) {
				return
			}
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("the Agent was not told of %s in %s; stderr:\n%s", want, patience, p.Stderr())
		}
	}
}

// mustStayOff checks that a program runs, that ddtrace runs in it, and that one line says why the engine does not.
func mustStayOff(t *testing.T, e environment, prefix []string, why string) {
	t.Helper()
	p := start(t, e, prefix, append(testenv.Gates, "DD_TRACE_AGENT_URL=http://127.0.0.1:1")...)
	if sum := p.Eval("plain(1)"); p.Eval(`"ddtrace._trace.tracer" in sys.modules or "ddtrace.tracer" in sys.modules`) != true {
		t.Errorf("ddtrace did not start; plain(1) is %v", sum)
	}
	files, entries := testenv.EngineFiles(t, p.PID()), p.Eval("[str(f) for f in sys.meta_path if 'sca_probe' in type(f).__module__]")
	p.Exit(0)
	if len(files) > 0 {
		t.Errorf("mapped are %v", files)
	}
	if got, ok := entries.([]any); !ok || len(got) > 0 {
		t.Errorf("sys.meta_path still has %v", entries)
	}
	var lines []string
	for line := range strings.Lines(p.Stderr()) {
		if strings.Contains(line, "sca-probe") || strings.Contains(line, "sca_probe") {
			lines = append(lines, line)
		}
	}
	if len(lines) != 1 || !strings.Contains(lines[0], "the engine stays off: "+why) {
		t.Errorf("want one line with %q, got %q", why, lines)
	}
	if strings.Contains(p.Stderr(), "Traceback") {
		t.Errorf("stderr:\n%s", p.Stderr())
	}
}

// TestOlderDdtrace starts a release of a line that the integration does not know.
func TestOlderDdtrace(t *testing.T) {
	const why = "ddtrace 1.20.19 is not supported; 2.x, 3.x and 4.x are"
	t.Run("wheel", func(t *testing.T) {
		e := withWheel(t, unknown)
		mustStayOff(t, e, []string{e.bin("ddtrace-run")}, why)
	})
	t.Run("sca-probe run", func(t *testing.T) {
		e := environment{unknown.Environment(t)}
		mustStayOff(t, e, []string{testenv.ProbePath(t), "run", "--", e.bin("ddtrace-run")}, why)
	})
}

// TestNewerDdtrace changes a release of ddtrace into ones that there may be.
func TestNewerDdtrace(t *testing.T) {
	changes := []struct {
		name, old, new string
		why            string
	}{
		{"version", "\nVersion: 4.16.0\n", "\nVersion: 5.0.0\n", "ddtrace 5.0.0 is not supported"},
		{"nobody to call back", "register_post_preload", "on_started", "this ddtrace is not as known"},
		{"another name", "ForksafeAwakeablePeriodicService", "ForkingService", "this ddtrace is not as known"},
	}
	for _, change := range changes {
		t.Run(change.name, func(t *testing.T) {
			e := beside(t, newest, filepath.Join(t.TempDir(), "venv"))
			packages, changed := e.packages(t), 0
			for name := range record(t, packages, "ddtrace") {
				if !strings.HasSuffix(name, ".py") && !strings.HasSuffix(name, "/METADATA") {
					continue
				}
				path := filepath.Join(packages, name)
				content, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if next := strings.ReplaceAll(string(content), change.old, change.new); next != string(content) {
					changed++
					if err := os.WriteFile(path, []byte(next), 0o644); err != nil {
						t.Fatal(err)
					}
				}
			}
			if changed == 0 {
				t.Fatalf("ddtrace has no %q", change.old)
			}
			e.install(t)
			mustStayOff(t, e, []string{e.bin("ddtrace-run")}, change.why)
		})
	}
}

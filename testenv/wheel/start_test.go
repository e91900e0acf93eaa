package wheel

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sca-probe/testenv"
)

// patience is how long anything may take on a machine that is busy.
const patience = 60 * time.Second

// A program is a subject in an environment with the wheel.
type program struct {
	*testenv.Subject
	t *testing.T
}

// start starts the subject in an environment, behind what a prefix says.
func start(t *testing.T, e environment, prefix []string, env ...string) *program {
	t.Helper()
	subject := testenv.StartSubject(t, testenv.Interpreter{Name: e.dir, Path: e.bin("python")},
		testenv.WithPrefix(prefix...), testenv.WithEnv(env...), testenv.WithDir(t.TempDir()))
	return &program{Subject: subject, t: t}
}

// until waits for an expression to be true in the program.
func (p *program) until(expression string) {
	p.t.Helper()
	for deadline := time.Now().Add(patience); p.Eval(expression) != true; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("not so after %s: %s; sca_probe.targets() is %v; stderr:\n%s", patience, expression,
				p.Eval(`__import__("sca_probe").targets()`), p.Stderr())
		}
	}
}

// agentOf returns the variables that have ddtrace use a test agent, and hurry.
func agentOf(agent *testenv.TestAgent) []string {
	return []string{
		"DD_TRACE_AGENT_URL=" + agent.URL, "DD_REMOTE_CONFIG_POLL_INTERVAL_SECONDS=0.2", "DD_TELEMETRY_HEARTBEAT_INTERVAL=1",
	}
}

const (
	configuration = "datadog/2/DEBUG/one/config"
	another       = "datadog/2/DEBUG/another/config"
	isPatched     = `__import__("sca_probe").targets() and __import__("sca_probe").targets()[0]["state"] == "patched"`
	isReverted    = `__import__("sca_probe").targets()[0]["state"] == "reverted"`
)

// TestStarts starts the engine in each way there is, with ddtrace's Remote Configuration as the source.
func TestStarts(t *testing.T) {
	run := func(t *testing.T) []string { return []string{testenv.ProbePath(t), "run", "--"} }
	ddtraceRun := func(e environment) []string { return []string{e.bin("ddtrace-run")} }
	ways := []struct {
		name        string
		environment func(*testing.T) environment
		prefix      func(*testing.T, environment) []string
		env         []string
		auto        bool // the program imports ddtrace.auto
		own         bool // the engine is the environment's own
	}{
		{"ddtrace-run", installedBeside, func(_ *testing.T, e environment) []string { return ddtraceRun(e) }, nil, false, true},
		{"ddtrace.auto", installedBeside, func(*testing.T, environment) []string { return nil }, nil, true, true},
		{"sca-probe run, ddtrace-run", installedBeside, func(t *testing.T, e environment) []string { return append(run(t), ddtraceRun(e)...) }, nil, false, true},
		{"sca-probe run, ddtrace.auto", installedBeside, func(t *testing.T, _ environment) []string { return run(t) }, nil, true, true},
		// gevent has ddtrace drop the modules that were imported until then, ours too, to import them again.
		{"ddtrace-run, modules unloaded", installedBeside, func(_ *testing.T, e environment) []string { return ddtraceRun(e) },
			[]string{"DD_UNLOAD_MODULES_FROM_SITECUSTOMIZE=1"}, false, true},
		{"no wheel, sca-probe run, ddtrace-run", notInstalled, func(t *testing.T, e environment) []string { return append(run(t), ddtraceRun(e)...) }, nil, false, false},
		{"no wheel, sca-probe run, ddtrace.auto", notInstalled, func(t *testing.T, _ environment) []string { return run(t) }, nil, true, false},
	}
	agent := testenv.StartTestAgent(t)
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			agent.Configure(another, testenv.Payload[any]())
			e := way.environment(t)
			env := append(append(agentOf(agent), testenv.Gates...), way.env...)
			p := start(t, e, way.prefix(t, e), env...)
			if way.auto {
				if files := testenv.EngineFiles(t, p.PID()); len(files) > 0 {
					t.Errorf("%v is mapped before ddtrace starts", files)
				}
				p.Exec("import ddtrace.auto")
			}
			agent.Configure(configuration, testenv.Payload("shapes:plain"))
			p.until(isPatched)
			p.Call("plain", 3)
			if hits := fmt.Sprint(p.Eval(`__import__("sca_probe").targets()[0]["hits"]`)); hits != "3" {
				t.Errorf("%s hits, want 3", hits)
			}
			want := filepath.Join(testenv.Root(), "build", "lib", "sca-probe", "python", "sca_probe", "_engine.abi3.so")
			if way.own {
				want = filepath.Join(e.packages(t), "sca_probe", "_engine.abi3.so")
			}
			if files := testenv.EngineFiles(t, p.PID()); len(files) != 1 || files[0] != want {
				t.Errorf("mapped are %v, want %s", files, want)
			}
			if finders := p.Eval("[type(f).__module__ for f in sys.meta_path if 'sca_probe' in type(f).__module__]"); fmt.Sprint(finders) != "[]" {
				t.Errorf("sys.meta_path still has %v", finders)
			}
			p.Exit(0)
			if strings.Contains(p.Stderr(), "sca-probe") {
				t.Errorf("stderr:\n%s", p.Stderr())
			}
		})
	}
}

// installedBeside and notInstalled are the newest ddtrace's environment with the wheel and without.
func installedBeside(t *testing.T) environment { return withWheel(t, newest) }
func notInstalled(t *testing.T) environment    { return withoutWheel(t, newest) }

// TestStartWithoutDdtrace starts the engine from the wheel alone, which follows a file then.
func TestStartWithoutDdtrace(t *testing.T) {
	e := without(t)
	file := filepath.Join(t.TempDir(), "targets.json")
	if err := os.WriteFile(file, []byte(`{"sca_instrumentation": {"targets": ["shapes:plain"]}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	p := start(t, e, nil, append(testenv.Gates, "SCA_PROBE_RC_SOURCE="+file)...)
	p.until(isPatched)
	if got := p.Eval(`"ddtrace" in sys.modules`); got != false {
		t.Error("ddtrace was imported")
	}
	// Modules of ours lie in a folder of its name: a program that asks must not take that for ddtrace.
	p.Exec("try:\n    from ddtrace import tracer\nexcept ImportError:\n    HAS_DDTRACE = False")
	if got := p.Eval("HAS_DDTRACE"); got != false {
		t.Errorf("HAS_DDTRACE is %v", got)
	}

	p = start(t, e, nil, append(testenv.Gates, "SCA_PROBE_RC_SOURCE=ddtrace")...)
	files := testenv.EngineFiles(t, p.PID())
	p.Exit(0) // all of its output is there then
	if len(files) > 0 || !strings.Contains(p.Stderr(), "SCA_PROBE_RC_SOURCE is ddtrace, which is not installed") {
		t.Errorf("ddtrace as the source: mapped %v, stderr:\n%s", files, p.Stderr())
	}
}

// TestClosedGateImportsNothing compares what an interpreter has imported when it has started, with the
// wheel installed and without.
func TestClosedGateImportsNothing(t *testing.T) {
	const started = "import sys; print(sorted(sys.modules), [str(f).split(' at 0x')[0] for f in sys.meta_path], sys.path[1:])"
	for _, value := range []string{"", "0", "false", "yes"} {
		t.Run("DD_SCA_DETECTION_ENABLED="+value, func(t *testing.T) {
			for _, variable := range append(testenv.Gates, "SCA_PROBE_RC_SOURCE=ddtrace") {
				name, on, _ := strings.Cut(variable, "=")
				t.Setenv(name, on)
			}
			t.Setenv("DD_SCA_DETECTION_ENABLED", value)
			with, bare := installedBeside(t), notInstalled(t)
			got := strings.ReplaceAll(with.run(t, "python", "-c", started), with.dir, "")
			want := strings.ReplaceAll(bare.run(t, "python", "-c", started), bare.dir, "")
			if got != want {
				t.Errorf("with the wheel:\n%s\nwithout:\n%s", got, want)
			}
			t.Setenv("DD_SCA_DETECTION_ENABLED", "1")
			if got := with.run(t, "python", "-c", started); !strings.Contains(got, "sca_probe") {
				t.Errorf("with the gate open sca_probe is not imported: %s", got)
			}
		})
	}
}

package loop

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"sca-probe/testenv"
	"sca-probe/testenv/rcserver"
)

// startWithSource starts a service whose Remote Configuration comes from no file.
func startWithSource(t *testing.T, in testenv.Interpreter, source string, env ...string) *service {
	t.Helper()
	env = append(append([]string{"SCA_PROBE_RC_SOURCE=" + source}, testenv.Gates...), env...)
	return &service{t: t, Subject: testenv.StartSubject(t, in,
		testenv.WithPrefix(testenv.ProbePath(t), "run", "--"), testenv.WithEnv(env...))}
}

// pushing defines what the tests of the push source use in the subject.
const pushing = `
import json, sca_probe
def payload(*targets):
    return json.dumps({"sca_instrumentation": {"targets": list(targets)}}).encode()
def refused(changes):
    before = sca_probe.states()
    try:
        sca_probe.push(changes)
    except (TypeError, ValueError):
        return sca_probe.states() == before
def is_original(name):
    return function_of(name).__code__ is ORIGINALS[name]
`

func TestPushedConfigurations(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Engine, func(t *testing.T, in testenv.Interpreter) {
		s := startWithSource(t, in, "push")
		s.Exec(pushing)
		s.Exec(`sca_probe.push({"one": payload("shapes:plain"), "two": payload("shapes:plain", "shapes:closure"), "three": b"{"})`)
		s.eventually(`{path: state for path, (state, _) in sca_probe.states().items()} == {"one": 2, "two": 2, "three": 3}`)
		s.must(`"three: malformed" in sca_probe.states()["three"][1]`)
		s.must(`not is_original("plain") and not is_original("closure")`)

		// A malformed payload leaves what its path asked for before.
		s.Exec(`sca_probe.push({"two": b"not JSON"})`)
		s.eventually(`sca_probe.states()["two"][0] == 3`)
		s.must(`not is_original("closure")`)

		s.Exec(`sca_probe.push({"two": None, "three": None})`)
		s.eventually(`is_original("closure")`)
		s.must(`not is_original("plain") and sca_probe.states() == {"one": (2, "")}`)

		// The same again is no update.
		s.Exec(`updates = sca_probe.stats()["updates"]; sca_probe.push({"one": payload("shapes:plain"), "none": None})`)
		s.Exec(`import time; time.sleep(0.1)`)
		s.must(`sca_probe.stats()["updates"] == updates`)

		for _, bad := range []string{
			`{"one": "a str"}`, `{"": b""}`, `{"a\0b": b""}`, `{"p" * 1025: b""}`, `{"one": b"x" * (33 << 20)}`,
			`{str(i): b"{}" for i in range(101)}`,
		} {
			s.must(fmt.Sprintf("refused(%s)", bad))
		}
	})
}

// forkedWithPush has a child report what it knows of its configurations, and withdraw one.
const forkedWithPush = `
read_end, write_end = os.pipe()
if os.fork() == 0:
    import time
    answer = []
    def until(condition):
        deadline = time.monotonic() + 15
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.01)
        answer.append(bool(condition()))
    until(lambda: sca_probe.states() == {"one": (2, ""), "two": (2, "")})
    sca_probe.push({"one": None})
    until(lambda: is_original("plain"))
    answer.append(not is_original("closure"))
    os.write(write_end, repr(answer).encode())
    os._exit(0)
os.close(write_end)
os.wait()
CHILD = os.read(read_end, 1000).decode()
`

func TestForkedChildKnowsWhatWasPushed(t *testing.T) {
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Engine), func(t *testing.T, in testenv.Interpreter) {
		s := startWithSource(t, in, "push")
		s.Exec(pushing)
		s.Exec(`sca_probe.push({"one": payload("shapes:plain"), "two": payload("shapes:closure")})`)
		s.eventually(`not is_original("plain") and not is_original("closure")`)
		s.Exec(forkedWithPush)
		if got := s.Eval("CHILD"); got != "[True, True, True]" {
			t.Errorf("the child answered %v", got)
		}
		s.must(`not is_original("plain") and sca_probe.states() == {"one": (2, ""), "two": (2, "")}`)
	})
}

func TestEngineFollowsTheAgent(t *testing.T) {
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Engine), func(t *testing.T, in testenv.Interpreter) {
		server := rcserver.New()
		http := httptest.NewServer(server)
		defer http.Close()
		if err := server.Set("datadog/2/DEBUG/one/config", []byte(`{"sca_instrumentation": {"targets": ["shapes:plain"]}}`)); err != nil {
			t.Fatal(err)
		}
		s := startWithSource(t, in, "agent", "DD_TRACE_AGENT_URL="+http.URL, "DD_REMOTE_CONFIG_POLL_INTERVAL_SECONDS=0.1")
		s.await("shapes:plain", "patched")
		server.Remove("datadog/2/DEBUG/one/config")
		s.await("shapes:plain", "reverted")
	})
}

func TestAgentSwitchedOffIsAReason(t *testing.T) {
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Engine), func(t *testing.T, in testenv.Interpreter) {
		s := startWithSource(t, in, "agent", "DD_REMOTE_CONFIGURATION_ENABLED=false")
		s.Exit(0) // what it said has arrived by then
		if want := "the engine stays off: DD_REMOTE_CONFIGURATION_ENABLED"; !strings.Contains(s.Stderr(), want) {
			t.Errorf("stderr does not say %q:\n%s", want, s.Stderr())
		}
	})
}

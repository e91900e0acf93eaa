package loop

import (
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sca-probe/testenv"
	"sca-probe/testenv/rcserver"
)

// startUnderDdtrace starts a service under ddtrace-run whose ddtrace polls the server.
func startUnderDdtrace(t *testing.T, in testenv.Interpreter, server *rcserver.Server, env ...string) *service {
	t.Helper()
	agent := httptest.NewServer(server)
	t.Cleanup(agent.Close)
	env = append([]string{"DD_SCA_DETECTION_ENABLED=1", "DD_APPSEC_SCA_ENABLED=1", "SCA_PROBE_RC_SOURCE=ddtrace",
		"DD_TRACE_AGENT_URL=" + agent.URL, "DD_REMOTE_CONFIG_POLL_INTERVAL_SECONDS=0.2"}, env...)
	return &service{t: t, Subject: testenv.StartSubject(t, in, testenv.WithEnv(env...),
		testenv.WithPrefix(testenv.ProbePath(t), "run", "--", filepath.Join(filepath.Dir(in.Path), "ddtrace-run")))}
}

// set gives the server a configuration.
func set(t *testing.T, server *rcserver.Server, path, content string) {
	t.Helper()
	if err := server.Set(path, []byte(content)); err != nil {
		t.Fatal(err)
	}
}

// awaitClient waits until a client of the server says what is wanted.
func awaitClient(t *testing.T, server *rcserver.Server, what string, holds func(rcserver.Client) bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !slices.ContainsFunc(server.Clients(), holds); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no client %s after %s: %+v", what, patience, server.Clients())
		}
	}
}

const (
	ourPath   = "datadog/2/DEBUG/ours/config"
	ourTarget = `{"sca_instrumentation": {"targets": ["shapes:plain"]}}`
	asmData   = "datadog/2/ASM_DATA/blocked/config"
	blocked   = `{"rules_data": [{"id": "blocked_ips", "type": "ip_with_expiration", "data": [{"value": "192.0.2.1", "expiration": 9999999999}]}]}`
	features  = "datadog/2/ASM_FEATURES/activation/config"
)

// appSec tells what of AppSec's configurations has reached its engine of rules.
const appSec = `
import sca_probe
from ddtrace.internal import core
from ddtrace.internal.settings.asm import config as asm
ARRIVED, WITHDRAWN = set(), set()
def _updated(removals, updates):
    ARRIVED.update(product for product, _, content in updates if content)
    WITHDRAWN.update(product for product, _ in removals)
core.on("waf.update", _updated)
def is_original(name):
    return function_of(name).__code__ is ORIGINALS[name]
`

// TestAppSecsConfigurationsArriveBesideOurs has ddtrace's own client poll for AppSec's products and ours at once.
func TestAppSecsConfigurationsArriveBesideOurs(t *testing.T) {
	underDdtrace(t, func(t *testing.T, in testenv.Interpreter) {
		server := rcserver.New()
		s := startUnderDdtrace(t, in, server, "DD_APPSEC_ENABLED=1")
		s.Exec(appSec)
		rules, err := os.ReadFile(fmt.Sprint(s.Eval("__import__('os').path.join(__import__('ddtrace').__path__[0], 'appsec', 'rules.json')")))
		if err != nil {
			t.Fatal(err)
		}
		set(t, server, ourPath, ourTarget)
		set(t, server, asmData, blocked)
		set(t, server, "datadog/2/ASM_DD/rules/config", string(rules))
		s.await("shapes:plain", "patched")
		s.eventually(`ARRIVED == {"ASM_DATA", "ASM_DD"}`)
		awaitClient(t, server, "has acknowledged ours and AppSec's, of one list of products", func(c rcserver.Client) bool {
			return slices.Contains(c.Products, "DEBUG") && slices.Contains(c.Products, "ASM_DD") && slices.Contains(c.Products, "ASM_DATA") &&
				c.Configs["ours"].State == 2 && c.Configs["blocked"].State == 2 && c.Configs["rules"].State == 2
		})
		if n := len(server.Clients()); n != 1 {
			t.Errorf("%d clients poll, want ddtrace's alone", n)
		}

		// Ours changes and AppSec's stays, and the other way round.
		set(t, server, "datadog/2/DEBUG/bad/config", `{"sca_instrumentation": {"targets": [7]}}`)
		awaitClient(t, server, "says why the malformed one is refused", func(c rcserver.Client) bool {
			return c.Configs["bad"].State == 3 && strings.Contains(c.Configs["bad"].Error, "neither a string nor an object") && c.Configs["ours"].State == 2
		})
		server.Remove(asmData)
		s.eventually(`WITHDRAWN == {"ASM_DATA"}`)
		s.must(`not is_original("plain") and asm._asm_enabled`)
		server.Remove(ourPath)
		s.eventually(`is_original("plain")`)
		s.must(`WITHDRAWN == {"ASM_DATA"} and asm._asm_enabled`)
	})
}

// TestOneClickActivation has Remote Configuration switch AppSec on, off and on again in a running program.
func TestOneClickActivation(t *testing.T) {
	underDdtrace(t, func(t *testing.T, in testenv.Interpreter) {
		server := rcserver.New()
		s := startUnderDdtrace(t, in, server)
		s.Exec(appSec)
		set(t, server, ourPath, ourTarget)
		awaitClient(t, server, "asks for our product", func(c rcserver.Client) bool {
			return c.Polls > 5 && slices.Contains(c.Products, "DEBUG") && slices.Contains(c.Products, "ASM_FEATURES")
		})
		s.must(`not asm._asm_enabled and sca_probe.stats()["engine"] == "off" and is_original("plain")`)
		if len(testenv.EngineFiles(t, s.PID())) > 0 {
			t.Error("a file of the engine is mapped while AppSec is off")
		}
		for round := range 2 {
			set(t, server, features, `{"asm": {"enabled": true}}`)
			s.eventually(`asm._asm_enabled`)
			s.await("shapes:plain", "patched")
			s.Call("plain", 3)
			if hits := s.hits("shapes:plain"); hits != "3" {
				t.Errorf("%s hits of 3 calls", hits)
			}
			// What AppSec subscribed to when it was switched on arrives too.
			s.Exec("ARRIVED.clear()")
			awaitClient(t, server, "asks for both", func(c rcserver.Client) bool {
				return slices.Contains(c.Products, "DEBUG") && slices.Contains(c.Products, "ASM_DATA")
			})
			set(t, server, asmData, strings.Replace(blocked, "192.0.2.1", fmt.Sprintf("192.0.2.%d", 2+round), 1))
			s.eventually(`ARRIVED == {"ASM_DATA"}`)
			set(t, server, features, `{"asm": {"enabled": false}}`)
			s.eventually(`not asm._asm_enabled and is_original("plain")`)
		}
	})
}

// TestAgentIsPolledWhereDdtraceCannotBeSubscribedTo names a product that is not on the list of ddtrace's client.
func TestAgentIsPolledWhereDdtraceCannotBeSubscribedTo(t *testing.T) {
	underDdtrace(t, func(t *testing.T, in testenv.Interpreter) {
		server := rcserver.New()
		s := startUnderDdtrace(t, in, server, "DD_APPSEC_ENABLED=1", "SCA_PROBE_RC_PRODUCT=SCA_OF_THIS_TEST")
		set(t, server, "datadog/2/SCA_OF_THIS_TEST/ours/config", ourTarget)
		s.await("shapes:plain", "patched")
		awaitClient(t, server, "of ours polls for the product alone", func(c rcserver.Client) bool {
			return slices.Equal(c.Products, []string{"SCA_OF_THIS_TEST"}) && c.Configs["ours"].State == 2
		})
		awaitClient(t, server, "of ddtrace's polls for AppSec's, and not for it", func(c rcserver.Client) bool {
			return slices.Contains(c.Products, "ASM_DD") && !slices.Contains(c.Products, "SCA_OF_THIS_TEST")
		})
		if said := s.Stderr(); strings.Count(said, "the engine polls the Agent: its list of products has no SCA_OF_THIS_TEST") != 1 {
			t.Errorf("want one sentence that the engine polls the Agent, and why:\n%s", said)
		}
		server.Remove("datadog/2/SCA_OF_THIS_TEST/ours/config")
		s.await("shapes:plain", "reverted")
	})
}

// TestBundledTargets has the list that ddtrace brings instrumented, as far as what is installed is on it:
// requests 2.31.0 is (GHSA-652x-xj99-gmcc), and a current urllib3 is not.
func TestBundledTargets(t *testing.T) {
	underDdtrace(t, func(t *testing.T, in testenv.Interpreter) {
		server := rcserver.New()
		s := startUnderDdtrace(t, in, server, "DD_APPSEC_ENABLED=1", "SCA_PROBE_BUNDLED_TARGETS=1")
		s.Exec(appSec)
		s.must(`tuple(map(int, __import__("importlib.metadata").metadata.version("urllib3").split(".")[:2])) >= (2, 3)`)
		s.await("requests.sessions:Session.send", "pending")
		s.Exec("import requests, urllib3, urllib3._collections")
		s.await("requests.sessions:Session.send", "patched")
		s.must(`[(t["package"], t["advisories"], t["mode"]) for t in sca_probe.targets() if t["target"] == "requests.sessions:Session.send"] == [("requests", ["GHSA-652x-xj99-gmcc"], "first_hit")]`)
		s.must(`not any(t["target"].startswith("urllib3") for t in sca_probe.targets())`)

		// Remote Configuration comes beside it, and goes without it.
		set(t, server, ourPath, ourTarget)
		s.await("shapes:plain", "patched")
		server.Remove(ourPath)
		s.await("shapes:plain", "reverted")
		s.await("requests.sessions:Session.send", "patched")
	})
}

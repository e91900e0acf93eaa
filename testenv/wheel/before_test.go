package wheel

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"sca-probe/testenv"
	"sca-probe/testenv/rcserver"
)

const (
	shopWorkers = 2
	shopTarget  = "requests.sessions:Session.send"
)

// A configurer has one configuration at a time, or none, for whom asks at its URL.
type configurer struct {
	url       string
	configure func(targets ...string)
}

// likeAgent is an Agent that answers as the real one does: with what the client asks for, and with nothing where the
// client has the newest version already, whatever it asks for.
func likeAgent(t *testing.T) configurer {
	t.Helper()
	server := rcserver.New()
	web := httptest.NewServer(server)
	t.Cleanup(web.Close)
	return configurer{web.URL, func(targets ...string) {
		if len(targets) == 0 {
			server.Remove(configuration)
			return
		}
		payload, err := json.Marshal(testenv.Payload(targets...))
		if err == nil {
			err = server.Set(configuration, payload)
		}
		if err != nil {
			t.Fatal(err)
		}
	}}
}

// testAgent is ddapm-test-agent, which sends what it has to all clients, whatever they ask for.
func testAgent(t *testing.T) configurer {
	t.Helper()
	agent := testenv.StartTestAgent(t)
	return configurer{agent.URL, func(targets ...string) {
		if len(targets) == 0 {
			agent.Configure(another, testenv.Payload[any]())
			return
		}
		agent.Configure(configuration, testenv.Payload(targets...))
	}}
}

// TestConfiguredBeforeTheStart starts programs whose configuration is there already, in each way that there is to start.
// An Agent that was polled before the subscription would not send it.
func TestConfiguredBeforeTheStart(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		for _, way := range threeWays {
			t.Run(way.name, func(t *testing.T) {
				server := likeAgent(t)
				server.configure("shapes:plain")
				e := way.environment(t, r)
				p := start(t, e, way.prefix(t, e), append([]string{"DD_TRACE_AGENT_URL=" + server.url, "DD_REMOTE_CONFIG_POLL_INTERVAL_SECONDS=0.2"}, testenv.Gates...)...)
				if way.auto {
					p.Exec("import ddtrace.auto")
				}
				p.until(isPatched)
				server.configure()
				p.until(isReverted)
				p.Exit(0)
			})
		}
	})
}

// TestConfiguredBeforeTheWorkers has the configuration there before a server that forks its workers, in each of which it
// is to be applied, withdrawn and applied again, by ddtrace's client and by the engine's own.
func TestConfiguredBeforeTheWorkers(t *testing.T) {
	eachRelease(t, func(t *testing.T, r release) {
		for _, source := range []string{"ddtrace", "agent"} {
			for name, server := range map[string]func(*testing.T) configurer{"Agent": likeAgent, "ddapm-test-agent": testAgent} {
				if r != newest && (source != "ddtrace" || name != "Agent") && os.Getenv("SCA_PROBE_TEST_ALL") == "" {
					continue
				}
				t.Run(source+" by "+name, func(t *testing.T) {
					agent := server(t)
					agent.configure(shopTarget)
					s := startShop(t, r, agent.url, "SCA_PROBE_RC_SOURCE="+source)
					s.everyWorker("patched", "hit")
					agent.configure()
					s.everyWorker("reverted")
					agent.configure(shopTarget)
					s.everyWorker("patched", "hit")
				})
			}
		}
	})
}

// A shop is testenv/subjects/shop.py under gunicorn and ddtrace-run.
type shop struct {
	t   *testing.T
	url string
}

func startShop(t *testing.T, r release, agent string, env ...string) *shop {
	t.Helper()
	e := withWheel(t, r)
	address := fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t))
	output, err := os.Create(filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}
	argv := []string{e.bin("gunicorn"), "-w", fmt.Sprint(shopWorkers), "-b", address, "shop:app"}
	if r.line() != "4" {
		// Has encodings.idna imported before the fork. Otherwise the thread of ddtrace's that looks for the Agent imports
		// it, now and then just as gunicorn forks, and the worker waits for the lock of that import for ever.
		argv = append(argv, "--preload")
	}
	cmd := exec.Command(e.bin("ddtrace-run"), argv...)
	cmd.Dir = filepath.Join(testenv.Root(), "testenv", "subjects")
	cmd.Env = append(append(os.Environ(), testenv.Gates...), "DD_TRACE_AGENT_URL="+agent,
		"DD_REMOTE_CONFIG_POLL_INTERVAL_SECONDS=0.2", "PYTHONDONTWRITEBYTECODE=1")
	cmd.Env = append(cmd.Env, env...)
	cmd.Stdout, cmd.Stderr = output, output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(output.Name())
			t.Logf("the service's output:\n%s", text)
		}
	})
	return &shop{t, "http://" + address}
}

// everyWorker waits until the target is in one of some states in each worker.
func (s *shop) everyWorker(states ...string) {
	s.t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	last := map[int]string{}
	there := func() bool {
		answer, err := client.Get(s.url + "/state")
		if err != nil {
			return false
		}
		defer answer.Body.Close()
		var worker struct {
			PID     int
			Targets []struct{ Target, State string }
		}
		body, err := io.ReadAll(answer.Body)
		if err != nil || json.Unmarshal(body, &worker) != nil {
			return false
		}
		last[worker.PID] = string(body)
		for _, target := range worker.Targets {
			if target.Target == shopTarget {
				last[worker.PID] = target.State
			}
		}
		n := 0
		for _, state := range last {
			if slices.Contains(states, state) {
				n++
			}
		}
		return n == shopWorkers
	}
	for deadline := time.Now().Add(patience); !there(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("not %v in %d workers after %s: %v", states, shopWorkers, patience, last)
		}
	}
}

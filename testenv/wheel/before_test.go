package wheel

import (
	"encoding/json"
	"net/http/httptest"
	"os"
	"testing"

	"sca-probe/testenv"
	"sca-probe/testenv/rcserver"
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
	testenv.EachDdtraceRelease(t, func(t *testing.T, r release) {
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
	testenv.EachDdtraceRelease(t, func(t *testing.T, r release) {
		for _, source := range []string{"ddtrace", "agent"} {
			for name, server := range map[string]func(*testing.T) configurer{"Agent": likeAgent, "ddapm-test-agent": testAgent} {
				if r != newest && (source != "ddtrace" || name != "Agent") && os.Getenv("SCA_PROBE_TEST_ALL") == "" {
					continue
				}
				t.Run(source+" by "+name, func(t *testing.T) {
					agent := server(t)
					agent.configure(testenv.ShopTarget)
					s := testenv.Shop{Environment: withWheel(t, r).dir, Release: r, Workers: 2, Agent: agent.url,
						Env: []string{"SCA_PROBE_RC_SOURCE=" + source}}
					s.Start(t)
					s.EveryWorker("patched", "hit")
					agent.configure()
					s.EveryWorker("reverted")
					agent.configure(testenv.ShopTarget)
					s.EveryWorker("patched", "hit")
				})
			}
		}
	})
}

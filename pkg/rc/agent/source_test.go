package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"sca-probe/pkg/rc"
	"sca-probe/testenv"
	"sca-probe/testenv/rcserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

// watch is a Source at work.
type watch struct {
	t       *testing.T
	updates <-chan rc.Update
}

// follow starts a Source that polls often.
func follow(t *testing.T, url string, change ...func(*Config)) *watch {
	t.Helper()
	config := Config{
		URL: url, Product: DefaultProduct, PollInterval: 50 * time.Millisecond, Timeout: 5 * time.Second,
		Tracer: Tracer{RuntimeID: "runtime", Language: "python", Version: "0.0.0", Service: "shop"},
	}
	for _, f := range change {
		f(&config)
	}
	source, err := NewSource(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &watch{t: t, updates: source.Watch(ctx)}
	t.Cleanup(func() {
		cancel()
		for range w.updates {
		}
	})
	return w
}

func (w *watch) next() rc.Update {
	w.t.Helper()
	select {
	case update := <-w.updates:
		return update
	case <-time.After(patience):
		w.t.Fatalf("no update within %s", patience)
	}
	panic("unreachable")
}

// expect takes the next update, which must have no error and just these targets.
func (w *watch) expect(targets ...string) rc.Update {
	w.t.Helper()
	update := w.next()
	if update.Err != nil {
		w.t.Fatalf("unexpected error: %v", update.Err)
	}
	if got := names(update); !slices.Equal(got, targets) {
		w.t.Fatalf("got %v, want %v", got, targets)
	}
	return update
}

// refuses takes the next update, which must say so and have just these targets.
func (w *watch) refuses(says string, targets ...string) rc.Update {
	w.t.Helper()
	update := w.next()
	if update.Err == nil || !strings.Contains(update.Err.Error(), says) {
		w.t.Errorf("error %v does not say %q", update.Err, says)
	}
	if got := names(update); !slices.Equal(got, targets) {
		w.t.Errorf("got %v, want %v", got, targets)
	}
	return update
}

func names(update rc.Update) []string {
	var names []string
	for _, target := range update.Set.Targets {
		names = append(names, target.String())
	}
	return names
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// payload is a payload with these entries.
func payload(entries ...any) map[string]any {
	if entries == nil {
		entries = []any{}
	}
	return map[string]any{"sca_instrumentation": map[string]any{"targets": entries}}
}

func encode(t *testing.T, payload any) []byte {
	t.Helper()
	raw, err := json.Marshal(payload)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// Datadog's own test agent

// said returns what clients told the test agent.
func said(t *testing.T, agent *testenv.TestAgent) []request {
	t.Helper()
	var all []request
	for _, sent := range agent.Requests() {
		if !strings.HasSuffix(sent.URL, "/v0.7/config") || sent.Method != http.MethodPost {
			continue
		}
		var r request
		if err := json.Unmarshal(sent.Body, &r); err != nil {
			t.Fatalf("%s: %v", sent.Body, err)
		}
		all = append(all, r)
	}
	return all
}

// saysNow returns what a client told the test agent last.
func saysNow(t *testing.T, agent *testenv.TestAgent) request {
	t.Helper()
	var all []request
	eventually(t, "a client polls", func() bool {
		all = said(t, agent)
		return len(all) > 0
	})
	return all[len(all)-1]
}

// tells waits until the test agent was told this about all configurations.
func tells(t *testing.T, agent *testenv.TestAgent, want ...configState) {
	t.Helper()
	var last []configState
	eventually(t, fmt.Sprintf("the agent was told %+v", want), func() bool {
		last = saysNow(t, agent).Client.State.ConfigStates
		return slices.EqualFunc(last, want, func(have, want configState) bool {
			errors := strings.Contains(have.ApplyError, want.ApplyError) && (have.ApplyError == "") == (want.ApplyError == "")
			have.ApplyError, want.ApplyError = "", ""
			return errors && have == want
		})
	})
}

func TestDatadogsTestAgent(t *testing.T) {
	agent := testenv.StartTestAgent(t)
	for name, url := range map[string]string{"http": agent.URL, "unix": "unix://" + agent.Socket} {
		t.Run(name, func(t *testing.T) {
			session := agent.Session(t.Name())
			session.Configure("datadog/2/DEBUG/one/config", payload("a:b"))
			w := follow(t, url, func(c *Config) { c.SessionToken = t.Name() })
			update := w.expect("a:b")
			tells(t, session, configState{ID: "one", Product: "DEBUG", ApplyState: 1})
			update.Ack(nil)
			tells(t, session, configState{ID: "one", Product: "DEBUG", ApplyState: 2})

			session.Configure("datadog/2/DEBUG/one/config", payload("a:b", map[string]any{
				"target": "c:D.e", "package": "requests", "advisories": []string{"GHSA-1"}, "mode": "first_hit",
			}))
			update = w.expect("a:b", "c:D.e")
			want := rc.Instrumentation{
				Target: rc.Target{Module: "c", QualName: "D.e"}, Mode: rc.FirstHit,
				Package: "requests", Advisories: []string{"GHSA-1"},
			}
			if diff := cmp.Diff(want, update.Set.Targets[1]); diff != "" {
				t.Errorf("want, got: %s", diff)
			}

			// Refused whole: what was asked for before stays, and the Agent hears why.
			session.Configure("datadog/2/DEBUG/one/config", payload("a:b", "no colon"))
			w.refuses("datadog/2/DEBUG/one/config", "a:b", "c:D.e").Ack(nil)
			tells(t, session, configState{ID: "one", Product: "DEBUG", ApplyState: 3, ApplyError: "has no colon"})

			// One configuration for another.
			session.Configure("datadog/2/DEBUG/two/config", payload("f:g"))
			w.expect("f:g").Ack(fmt.Errorf("CPython 3.99 is unknown"))
			tells(t, session, configState{ID: "two", Product: "DEBUG", ApplyState: 3, ApplyError: "CPython 3.99 is unknown"})

			session.Configure("datadog/2/ASM_DD/rules/config", payload("not:ours"))
			w.expect()
			tells(t, session)

			last := saysNow(t, session)
			if last.Client.Tracer.Service != "shop" || !slices.Equal(last.Client.Products, []string{"DEBUG"}) || len(last.Client.ID) < 20 {
				t.Errorf("the client says of itself: %+v", last.Client)
			}
			if last.Client.State.RootVersion != 2 { // which is what the test agent sends
				t.Errorf("root version %d", last.Client.State.RootVersion)
			}
		})
	}
}

func TestAnswersThatDoNotFit(t *testing.T) {
	agent := testenv.StartTestAgent(t)
	good := func(content string) map[string]any {
		server := rcserver.New()
		if err := server.Set("datadog/2/DEBUG/one/config", []byte(content)); err != nil {
			t.Fatal(err)
		}
		var answer map[string]any
		web := httptest.NewServer(server)
		defer web.Close()
		body := `{"client": {"id": "x", "is_tracer": true, "products": ["DEBUG"], "state": {"root_version": 1}, "client_tracer": {"language": "go"}}}`
		response, err := http.Post(web.URL+"/v0.7/config", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
			t.Fatal(err)
		}
		return answer
	}
	a := good(string(encode(t, payload("a:b"))))
	b := good(string(encode(t, payload("c:d"))))
	agent.Answer(a)
	w := follow(t, agent.URL)
	w.expect("a:b")
	for _, c := range []struct {
		name, says string
		change     func(answer map[string]any)
	}{
		{"another file's hash", "hash", func(answer map[string]any) { answer["target_files"] = a["target_files"] }},
		{"no file", "missing update file", func(answer map[string]any) { delete(answer, "target_files") }},
		{"not in the targets", "datadog/2/DEBUG/three/config is not in it", func(answer map[string]any) {
			answer["client_configs"] = []string{"datadog/2/DEBUG/three/config"}
		}},
		{"no targets", "the targets file: unexpected end", func(answer map[string]any) { delete(answer, "targets") }},
		{"targets no JSON", "the targets file", func(answer map[string]any) { answer["targets"] = []byte("{") }},
		{"too many", "101 configurations are more than the limit of 100", func(answer map[string]any) {
			var many []string
			for i := range 101 {
				many = append(many, fmt.Sprintf("datadog/2/DEBUG/%d/config", i))
			}
			answer["client_configs"] = many
		}},
		{"too large", "more than the limit of 33554432 bytes", func(answer map[string]any) {
			answer["targets"] = []byte(`{"signed": {"targets": {"datadog/2/DEBUG/one/config": {"custom": {"v": 1}, "length": 33554433}}}}`)
		}},
		{"no version", "version missing", func(answer map[string]any) {
			answer["targets"] = []byte(`{"signed": {"targets": {"datadog/2/DEBUG/one/config": {"length": 1, "hashes": {"sha256": "00"}}}}}`)
		}},
		{"no hash", "no hash", func(answer map[string]any) {
			answer["targets"] = []byte(`{"signed": {"targets": {"datadog/2/DEBUG/one/config": {"custom": {"v": 1}, "length": 1}}}}`)
		}},
		{"another shape", "the answer is not what was expected", func(answer map[string]any) { answer["client_configs"] = 1 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.t = t
			answer := map[string]any{}
			for key, value := range b {
				answer[key] = value
			}
			c.change(answer)
			agent.Answer(answer)
			w.refuses(c.says, "a:b")
			if c.name != "another shape" { // which nothing can be told about
				eventually(t, "the agent hears of it", func() bool {
					state := saysNow(t, agent).Client.State
					return state.HasError && strings.Contains(state.Error, c.says)
				})
			}
			agent.Answer(a)
			w.expect("a:b")
		})
	}
	w.t = t
	agent.Answer(b)
	w.expect("c:d")
	agent.Answer(map[string]any{}) // nothing new
	eventually(t, "it has told of no error", func() bool { return !saysNow(t, agent).Client.State.HasError })
	select {
	case update := <-w.updates:
		t.Errorf("unexpected update: %v, error %v", names(update), update.Err)
	case <-time.After(200 * time.Millisecond):
	}
}

func TestSessionsDoNotMix(t *testing.T) {
	agent := testenv.StartTestAgent(t)
	agent.Session("one").Configure("datadog/2/DEBUG/x/config", payload("a:b"))
	agent.Session("two").Configure("datadog/2/DEBUG/x/config", payload("c:d"))
	follow(t, agent.URL, func(c *Config) { c.SessionToken = "one" }).expect("a:b")
	follow(t, agent.URL, func(c *Config) { c.SessionToken = "two" }).expect("c:d")
	follow(t, agent.URL).expect()
}

func TestAgentThatComesAndGoes(t *testing.T) {
	agent := testenv.StartTestAgent(t)
	agent.Configure("datadog/2/DEBUG/x/config", payload("a:b"))
	w := follow(t, agent.URL)
	w.expect("a:b")
	agent.Stop()
	w.refuses(agent.URL, "a:b")
	agent.Start()
	w.settles("a:b") // it has no configuration of its own, and says nothing
	agent.Configure("datadog/2/DEBUG/x/config", payload("c:d"))
	w.settles("c:d")
}

// settles takes updates until one has no error and just these targets.
func (w *watch) settles(targets ...string) {
	w.t.Helper()
	for {
		if update := w.next(); update.Err == nil && slices.Equal(names(update), targets) {
			return
		}
	}
}

// Our server, which has several configurations at a time, and keeps to the protocol's economy

func serve(t *testing.T) (*rcserver.Server, string) {
	t.Helper()
	server := rcserver.New()
	web := httptest.NewServer(server)
	t.Cleanup(web.Close)
	return server, web.URL
}

func set(t *testing.T, server *rcserver.Server, path string, content []byte) {
	t.Helper()
	if err := server.Set(path, content); err != nil {
		t.Fatal(err)
	}
}

// only returns the server's only client, when it has the latest version.
func only(t *testing.T, server *rcserver.Server) rcserver.Client {
	t.Helper()
	var clients []rcserver.Client
	eventually(t, "one client is up to date", func() bool {
		clients = server.Clients()
		return len(clients) == 1 && clients[0].TargetsVersion == server.Version()
	})
	return clients[0]
}

// tellsServer waits until the server was told this about all configurations.
func tellsServer(t *testing.T, server *rcserver.Server, want map[string]string) {
	t.Helper()
	var have map[string]string
	eventually(t, fmt.Sprintf("the server was told %v", want), func() bool {
		have = map[string]string{}
		for id, state := range only(t, server).Configs {
			have[id] = fmt.Sprintf("%d %s", state.Version, state)
		}
		if len(have) != len(want) {
			return false
		}
		for id, says := range want {
			if !strings.HasPrefix(have[id], says) {
				return false
			}
		}
		return true
	})
}

func TestSeveralConfigurations(t *testing.T) {
	server, url := serve(t)
	w := follow(t, url)
	w.expect() // none so far
	set(t, server, "datadog/2/DEBUG/b/config", encode(t, payload("b:b", "x:x")))
	w.expect("b:b", "x:x").Ack(nil)
	set(t, server, "datadog/2/DEBUG/a/config", encode(t, payload("a:a", "x:x")))
	set(t, server, "employee/DEBUG/c/config", encode(t, payload("c:c")))
	w.settles("a:a", "x:x", "b:b", "c:c")
	set(t, server, "datadog/2/LIVE_DEBUGGING/z/config", []byte("not ours"))

	// Part of them fails.
	set(t, server, "datadog/2/DEBUG/a/config", []byte(`{"sca_instrumentation": {"targets": ["a:new", 1]}}`))
	set(t, server, "employee/DEBUG/c/config", encode(t, payload("c:new")))
	for update := w.next(); ; update = w.next() {
		if slices.Equal(names(update), []string{"a:a", "x:x", "b:b", "c:new"}) && update.Err != nil {
			update.Ack(nil)
			break
		}
	}
	tellsServer(t, server, map[string]string{
		"a": "2 error: datadog/2/DEBUG/a/config: malformed Remote Configuration payload: sca_instrumentation.targets[1] is neither",
		"b": "1 acknowledged", "c": "2 acknowledged",
	})
	client := only(t, server)
	if want := []string{"datadog/2/DEBUG/a/config", "datadog/2/DEBUG/b/config", "employee/DEBUG/c/config"}; !slices.Equal(client.Cached, want) {
		t.Errorf("the client says that it has %v", client.Cached)
	}
	if want := fmt.Sprintf("state %d", server.Version()); client.BackendState != want || client.RootVersion != 1 {
		t.Errorf("backend state %q, root version %d", client.BackendState, client.RootVersion)
	}

	server.Remove("datadog/2/DEBUG/a/config")
	w.expect("b:b", "x:x", "c:new").Ack(nil)
	tellsServer(t, server, map[string]string{"b": "1 acknowledged", "c": "2 acknowledged"})
	server.Remove("datadog/2/DEBUG/b/config")
	server.Remove("employee/DEBUG/c/config")
	w.settles()
	tellsServer(t, server, map[string]string{})
}

// A file that the client has is not sent again.
func TestFilesAreSentOnce(t *testing.T) {
	server := rcserver.New()
	var sent atomic.Int64
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		server.ServeHTTP(w, r)
		for _, client := range server.Clients() {
			sent.Add(int64(len(client.Sent)))
		}
	}))
	t.Cleanup(web.Close)
	for i := range 10 {
		set(t, server, fmt.Sprintf("datadog/2/DEBUG/%d/config", i), encode(t, payload(fmt.Sprintf("m:f%d", i))))
	}
	w := follow(t, web.URL)
	if update := w.next(); len(names(update)) != 10 || update.Err != nil {
		t.Fatalf("%v, error %v", names(update), update.Err)
	}
	set(t, server, "datadog/2/DEBUG/3/config", encode(t, payload("m:new")))
	w.next()
	only(t, server)
	if sent.Load() != 11 {
		t.Errorf("%d files were sent, of 11 contents", sent.Load())
	}
}

func TestRemoteConfigurationSwitchedOff(t *testing.T) {
	server, url := serve(t)
	server.SwitchOff(true)
	set(t, server, "datadog/2/DEBUG/a/config", encode(t, payload("a:a")))
	w := follow(t, url)
	w.refuses("does not serve Remote Configuration")
	server.SwitchOff(false)
	w.expect("a:a")
	server.SwitchOff(true)
	w.refuses("does not serve Remote Configuration", "a:a")
	server.Remove("datadog/2/DEBUG/a/config")
	server.SwitchOff(false)
	w.expect()
}

func TestHostileAgents(t *testing.T) {
	endless := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/info" {
			fmt.Fprint(w, `{"endpoints": ["/v0.7/config"]}`)
			return
		}
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	}
	for _, c := range []struct {
		name, says string
		handler    http.HandlerFunc
	}{
		{"endless answer", "limit", endless},
		{"never an answer", "deadline", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }},
		{"no JSON", "/info: the answer is not what was expected", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }},
		{"null", "does not serve", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "null") }},
		{"a redirect", "/info: status 302", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }},
		{"an error", "/info: status 500", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			web := httptest.NewServer(c.handler)
			t.Cleanup(web.Close)
			w := follow(t, web.URL, func(config *Config) {
				if config.Timeout = patience; c.name == "never an answer" {
					config.Timeout = 50 * time.Millisecond
				}
			})
			w.refuses(c.says)
		})
	}
}

func TestNobodyListens(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	follow(t, "http://"+listener.Addr().String()).refuses("connection refused")
	follow(t, "unix://"+filepath.Join(t.TempDir(), "none")).refuses("no such file")
}

// Attempts become rarer, within a bound, and differ between processes.
func TestBackoff(t *testing.T) {
	within := func(failures int, from, to time.Duration) {
		t.Helper()
		seen := map[time.Duration]bool{}
		for range 100 {
			wait := backoff(5*time.Second, failures)
			if wait < from || wait > to {
				t.Errorf("after %d failures: %s", failures, wait)
			}
			seen[wait] = true
		}
		if len(seen) < 50 {
			t.Errorf("after %d failures, 100 processes wait for %d different times", failures, len(seen))
		}
	}
	within(1, 2500*time.Millisecond, 7500*time.Millisecond)
	within(2, 5*time.Second, 15*time.Second)
	within(4, 20*time.Second, time.Minute)
	within(5, 30*time.Second, 90*time.Second)
	within(1000, 30*time.Second, 90*time.Second)
	if wait := backoff(time.Hour, 9); wait < time.Hour/2 {
		t.Errorf("with an interval of an hour: %s", wait)
	}
}

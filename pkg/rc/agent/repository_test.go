package agent

import (
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"

	"sca-probe/pkg/rc"
	"sca-probe/testenv/rcserver"
)

// answered returns what the server answers to a client that has nothing, of one configuration.
func answered(tb testing.TB, path, content string) response {
	tb.Helper()
	server := rcserver.New()
	if err := server.Set(path, []byte(content)); err != nil {
		tb.Fatal(err)
	}
	question := `{"client": {"id": "x", "is_tracer": true, "products": ["DEBUG"], "state": {"root_version": 1}, "client_tracer": {"language": "go"}}}`
	recorder := httptest.NewRecorder()
	server.ServeHTTP(recorder, httptest.NewRequest("POST", "/v0.7/config", strings.NewReader(question)))
	var answer response
	if err := json.Unmarshal(recorder.Body.Bytes(), &answer); err != nil {
		tb.Fatal(err)
	}
	return answer
}

// FuzzAnswer gives a client that has one configuration an answer that nobody checked before. It
// takes or refuses it, without harm, and its next request says what it has.
func FuzzAnswer(f *testing.F) {
	const path = "datadog/2/DEBUG/one/config"
	first := answered(f, path, `{"sca_instrumentation": {"targets": ["a:b"]}}`)
	for _, content := range []string{`{}`, `{"sca_instrumentation": {"targets": []}}`} {
		answer := answered(f, path, content)
		f.Add([]byte(`{"signed": {"_type": "root", "version": 2}}`), answer.Targets, path, answer.TargetFiles[0].Raw)
		f.Add([]byte(`{"signed": {"version": -1}}`), answer.Targets, "employee/DEBUG/two/config", []byte{})
	}
	f.Add([]byte(`null`), []byte(`{"signed": null}`), "", []byte(nil))
	f.Add([]byte(`{}`), []byte(`{"signed": {"version": 9, "targets": {"datadog/2/DEBUG/x/y": {"length": 0, "hashes": {"md5": ""}, "custom": {"v": null}}}}}`), "datadog/2/DEBUG/x/y", []byte{})
	f.Fuzz(func(t *testing.T, root, targets []byte, path string, raw []byte) {
		repository, err := newRepository("DEBUG")
		if err != nil {
			t.Fatal(err)
		}
		if err := repository.update(first); err != nil || len(repository.files()) != 1 {
			t.Fatalf("%v, %v", repository.files(), err)
		}
		err = repository.update(response{
			Roots: [][]byte{root}, Targets: targets, ClientConfigs: []string{path},
			TargetFiles: []targetFile{{Path: path, Raw: raw}},
		})
		if err != nil && strings.HasPrefix(err.Error(), panicked) {
			t.Fatal(err)
		}
		if err != nil && len(repository.files()) != 1 {
			t.Errorf("an answer that was refused (%v) left %v", err, repository.files())
		}
		states := map[string]rc.State{}
		for path := range repository.files() {
			states[path] = rc.State{Applied: true}
		}
		state, cached, err2 := repository.describe(states)
		if err2 != nil {
			t.Fatal(err2)
		}
		if state.HasError != (err != nil) || len(cached) != len(states) || len(state.ConfigStates) != len(states) {
			t.Errorf("of %v it says %+v, %+v", states, state, cached)
		}
		for _, config := range state.ConfigStates {
			if config.ApplyState != 2 || config.Product != "DEBUG" {
				t.Errorf("%+v", config)
			}
		}
	})
}

func TestProductsInPaths(t *testing.T) {
	for path, want := range map[string]string{
		"datadog/2/DEBUG/id/name": "datadog/2/X/id/name",
		"employee/DEBUG/id/name":  "employee/X/id/name",
		"datadog/2/DEBUG/id":      "datadog/2/DEBUG/id",
		"other/2/DEBUG/id/name":   "other/2/DEBUG/id/name",
		"":                        "",
	} {
		if got := withProduct(path, "X"); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

package rcserver

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// good is what a client sends first.
const good = `{"client": {"id": "x", "is_tracer": true, "products": ["DEBUG"], "capabilities": "",
	"state": {"root_version": 1, "targets_version": 0}, "client_tracer": {"runtime_id": "r", "language": "python"}},
	"cached_target_files": []}`

func ask(s *Server, body string) *httptest.ResponseRecorder {
	recorder := httptest.NewRecorder()
	s.ServeHTTP(recorder, httptest.NewRequest(http.MethodPost, "/v0.7/config", strings.NewReader(body)))
	return recorder
}

// What the Agent refuses is refused here, or a client that passes here would fail there.
func TestRefusesWhatTheAgentRefuses(t *testing.T) {
	cached := func(file string) string {
		return strings.Replace(good, `"cached_target_files": []`, `"cached_target_files": [`+file+`]`, 1)
	}
	for _, c := range []struct{ body, says string }{
		{`{`, "EOF"},
		{`{}`, "client is required"},
		{strings.Replace(good, `"id": "x"`, `"id": ""`, 1), "client.id"},
		{strings.Replace(good, `"id": "x"`, `"id": "r"`, 1), "runtime_id"},
		{strings.Replace(good, `"root_version": 1`, `"root_version": 0`, 1), "root_version"},
		{strings.Replace(good, `"is_tracer": true`, `"is_tracer": false`, 1), "is_tracer"},
		{strings.Replace(good, `"language": "python"`, `"language": ""`, 1), "language"},
		{strings.Replace(good, `"client_tracer"`, `"tracer"`, 1), "client_tracer"},
		{strings.Replace(good, `"state"`, `"stale"`, 1), "client.state"},
		{strings.Replace(good, `"targets_version": 0`, `"config_states": [{"id": "", "product": "DEBUG"}]`, 1), "config_states[0]"},
		{strings.Replace(good, `"capabilities": ""`, `"capabilities": "?"`, 1), "base64"},
		{cached(`{"path": "one", "length": 1}`), "datadog/ORG/PRODUCT/ID/NAME"},
		{cached(`{"path": "datadog/2/DEBUG/a/b", "length": 0}`), "no length or hash"},
		{cached(`{"path": "datadog/2/DEBUG/a/b", "length": 1, "hashes": [{"algorithm": "sha256", "hash": ""}]}`), "empty hash"},
		{cached(`{"path": "datadog/2/DEBUG/a/b", "length": 1, "hashes": [{"algorithm": "sha256", "hash": "uU0nuZNNPgilLlLX2n2r+sSE7+N6U4DukIj3rOLvzek="}]}`), "failed to decode hash"},
	} {
		if answer := ask(New(), c.body); answer.Code < 400 || !strings.Contains(answer.Body.String(), c.says) {
			t.Errorf("%s: %d %s, want %q", c.body, answer.Code, answer.Body, c.says)
		}
	}
}

func TestAnswers(t *testing.T) {
	s := New()
	if err := s.Set("datadog/2/DEBUG/one", nil); err == nil {
		t.Error("a path without a name was taken")
	}
	for _, path := range []string{"datadog/2/DEBUG/one/config", "employee/DEBUG/two/config", "datadog/2/OTHER/three/config"} {
		if err := s.Set(path, []byte(path)); err != nil {
			t.Fatal(err)
		}
	}
	var a answer
	if err := json.Unmarshal(ask(s, good).Body.Bytes(), &a); err != nil {
		t.Fatal(err)
	}
	if want := []string{"datadog/2/DEBUG/one/config", "employee/DEBUG/two/config"}; !slices.Equal(a.ClientConfigs, want) || len(a.TargetFiles) != 2 {
		t.Errorf("%+v", a)
	}
	// A client that has the latest version has nothing to hear.
	if text := ask(s, strings.Replace(good, `"targets_version": 0`, `"targets_version": 4`, 1)).Body.String(); strings.TrimSpace(text) != "{}" {
		t.Errorf("nothing is new, but: %s", text)
	}
	if s.SwitchOff(true); ask(s, good).Code != http.StatusNotFound {
		t.Error("it serves though it is switched off")
	}
}

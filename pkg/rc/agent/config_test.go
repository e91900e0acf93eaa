package agent

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func from(variables map[string]string) (Config, error) {
	return FromEnvironment(func(name string) string { return variables[name] })
}

func TestWhereTheAgentIs(t *testing.T) {
	for _, c := range []struct {
		variables map[string]string
		want      string
	}{
		{map[string]string{"DD_TRACE_AGENT_URL": "http://agent:9000", "DD_AGENT_HOST": "other"}, "http://agent:9000"},
		{map[string]string{"DD_TRACE_AGENT_URL": "unix:///run/agent.socket"}, "unix:///run/agent.socket"},
		{map[string]string{"DD_AGENT_HOST": "agent"}, "http://agent:8126"},
		{map[string]string{"DD_AGENT_HOST": "agent", "DD_TRACE_AGENT_HOSTNAME": "legacy"}, "http://legacy:8126"},
		{map[string]string{"DD_TRACE_AGENT_PORT": "9000"}, "http://localhost:9000"},
		{map[string]string{"DD_AGENT_HOST": "::1", "DD_AGENT_PORT": "9000"}, "http://[::1]:9000"},
		{map[string]string{"DD_AGENT_HOST": "[::1]"}, "http://[::1]:8126"},
	} {
		if config, err := from(c.variables); err != nil || config.URL != c.want {
			t.Errorf("%v: %q, %v; want %q", c.variables, config.URL, err, c.want)
		}
	}
}

func TestFromEnvironment(t *testing.T) {
	config, err := from(map[string]string{
		"DD_AGENT_HOST": "agent",
		"DD_SERVICE":    "shop", "DD_ENV": "prod", "DD_VERSION": "1.2", "DD_TAGS": "team:web,region:eu cell:3",
		"DD_REMOTE_CONFIG_POLL_INTERVAL_SECONDS": "0.5", "DD_TRACE_AGENT_TIMEOUT_SECONDS": "3",
		"DD_REMOTE_CONFIGURATION_ENABLED":     "true",
		"_DD_TRACE_WRITER_ADDITIONAL_HEADERS": "X-Other:1,X-Datadog-Test-Session-Token:tok",
		"SCA_PROBE_RC_PRODUCT":                "SCA",
	})
	if err != nil {
		t.Fatal(err)
	}
	if config.PollInterval != 500*time.Millisecond || config.Timeout != 3*time.Second || config.SessionToken != "tok" || config.Product != "SCA" {
		t.Errorf("%+v", config)
	}
	tracer := config.Tracer
	if tracer.Service != "shop" || tracer.Env != "prod" || tracer.AppVersion != "1.2" || tracer.Language != "python" || tracer.RuntimeID == "" {
		t.Errorf("%+v", tracer)
	}
	for _, tag := range []string{"team:web", "region:eu", "cell:3", "env:prod", "version:1.2"} {
		if !slices.Contains(tracer.Tags, tag) {
			t.Errorf("no tag %s in %v", tag, tracer.Tags)
		}
	}
}

func TestDefaults(t *testing.T) {
	config, err := from(map[string]string{"DD_TRACE_AGENT_URL": "http://agent:1"})
	if err != nil {
		t.Fatal(err)
	}
	if config.Product != "DEBUG" || config.PollInterval != 5*time.Second || config.Timeout != 2*time.Second || config.SessionToken != "" {
		t.Errorf("%+v", config)
	}
}

func TestFromEnvironmentRefuses(t *testing.T) {
	for _, value := range []string{"false", "0", "no"} {
		if _, err := from(map[string]string{"DD_REMOTE_CONFIGURATION_ENABLED": value}); !errors.Is(err, ErrDisabled) {
			t.Errorf("%q: %v", value, err)
		}
	}
	for _, c := range []struct{ name, value, says string }{
		{"DD_REMOTE_CONFIG_POLL_INTERVAL_SECONDS", "often", `DD_REMOTE_CONFIG_POLL_INTERVAL_SECONDS="often": write a number of seconds`},
		{"DD_REMOTE_CONFIG_POLL_INTERVAL_SECONDS", "-1", "between 0.01 and 86400"},
		{"DD_REMOTE_CONFIG_POLL_INTERVAL_SECONDS", "NaN", "between 0.01 and 86400"},
		{"DD_TRACE_AGENT_TIMEOUT_SECONDS", "0", "between 0.01 and 86400"},
		{"DD_TRACE_AGENT_URL", "https://agent", "neither http://HOST:PORT nor unix:///PATH"},
		{"DD_TRACE_AGENT_URL", "unix://relative", "neither"},
		{"DD_TRACE_AGENT_URL", "agent:8126", "neither"},
		{"DD_TRACE_AGENT_PORT", "eight", "neither"},
	} {
		if _, err := from(map[string]string{c.name: c.value}); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s=%s: %v", c.name, c.value, err)
		}
	}
}

func TestDocumentedVariables(t *testing.T) {
	page, err := os.ReadFile("../../../docs/remote-configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	asked := map[string]bool{}
	if _, err := FromEnvironment(func(name string) string { asked[name] = true; return "" }); err != nil {
		t.Fatal(err)
	}
	if len(asked) < 10 {
		t.Errorf("only %v were asked for", asked)
	}
	for name := range asked {
		if !strings.Contains(string(page), "`"+name+"`") {
			t.Errorf("docs/remote-configuration.md does not name %s", name)
		}
	}
}

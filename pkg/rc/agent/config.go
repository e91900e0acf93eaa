package agent

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

// Defaults, which are those of ddtrace.
const (
	DefaultProduct      = "DEBUG"
	DefaultPollInterval = 5 * time.Second
	DefaultTimeout      = 2 * time.Second
	DefaultPort         = "8126"
	DefaultSocket       = "/var/run/datadog/apm.socket"
)

// ErrDisabled is the error of FromEnvironment where Remote Configuration is switched off.
var ErrDisabled = errors.New("DD_REMOTE_CONFIGURATION_ENABLED switches Remote Configuration off")

// A Config is what a Source needs to know.
type Config struct {
	// URL is where the Agent listens: "http://HOST:PORT" or "unix:///PATH".
	URL string
	// Product is the one whose configurations are payloads of ours.
	Product string
	// PollInterval is the time between two polls.
	PollInterval time.Duration
	// Timeout is the time that the Agent has to answer.
	Timeout time.Duration
	// SessionToken goes with each request as X-Datadog-Test-Session-Token, which tells
	// ddapm-test-agent the sessions of several tests apart. Empty for none.
	SessionToken string
	// Tracer says which program this is.
	Tracer Tracer
}

// FromEnvironment reads the variables that ddtrace reads too; docs/remote-configuration.md lists
// them. An empty variable is one that is not set.
func FromEnvironment(getenv func(string) string) (Config, error) {
	first := func(names ...string) string {
		for _, name := range names {
			if value := getenv(name); value != "" {
				return value
			}
		}
		return ""
	}
	config := Config{
		URL:          agentURL(first),
		Product:      cmp.Or(first("SCA_PROBE_RC_PRODUCT"), DefaultProduct),
		PollInterval: DefaultPollInterval,
		Timeout:      DefaultTimeout,
		Tracer: Tracer{
			// The Agent wants a language, and the backend a semantic version.
			Language:   "python",
			Version:    "0.0.0",
			RuntimeID:  rand.Text(),
			Service:    first("DD_SERVICE"),
			Env:        first("DD_ENV"),
			AppVersion: first("DD_VERSION"),
			Tags:       strings.FieldsFunc(first("DD_TAGS"), isSeparator),
		},
	}
	if enabled := first("DD_REMOTE_CONFIGURATION_ENABLED"); enabled != "" {
		switch strings.ToLower(enabled) {
		case "true", "1":
		default:
			return Config{}, ErrDisabled
		}
	}
	for _, tag := range []struct{ key, value string }{
		{"env", config.Tracer.Env}, {"version", config.Tracer.AppVersion}, {"tracer_version", config.Tracer.Version},
	} {
		if tag.value != "" {
			config.Tracer.Tags = append(config.Tracer.Tags, tag.key+":"+tag.value)
		}
	}
	if host, err := os.Hostname(); err == nil {
		config.Tracer.Tags = append(config.Tracer.Tags, "host_name:"+host)
	}
	for _, name := range []string{"_DD_REMOTE_CONFIGURATION_ADDITIONAL_HEADERS", "_DD_TRACE_WRITER_ADDITIONAL_HEADERS"} {
		for _, header := range strings.FieldsFunc(getenv(name), isSeparator) {
			if key, value, _ := strings.Cut(header, ":"); strings.EqualFold(key, tokenHeader) {
				config.SessionToken = value
			}
		}
	}
	for _, setting := range []struct {
		name string
		into *time.Duration
	}{
		{"DD_REMOTE_CONFIG_POLL_INTERVAL_SECONDS", &config.PollInterval},
		{"DD_TRACE_AGENT_TIMEOUT_SECONDS", &config.Timeout},
	} {
		if text := first(setting.name); text != "" {
			seconds, err := strconv.ParseFloat(text, 64)
			if err != nil || !(seconds >= 0.01 && seconds <= 86400) {
				return Config{}, fmt.Errorf("%s=%q: write a number of seconds between 0.01 and 86400", setting.name, text)
			}
			*setting.into = time.Duration(seconds * float64(time.Second))
		}
	}
	if _, _, err := config.address(); err != nil {
		return Config{}, err
	}
	return config, nil
}

func isSeparator(r rune) bool { return r == ',' || r == ' ' }

// agentURL finds the Agent as ddtrace does (ddtrace/internal/settings/_agent.py, 4.16).
func agentURL(first func(...string) string) string {
	if address := first("DD_TRACE_AGENT_URL"); address != "" {
		return address
	}
	host, port := first("DD_TRACE_AGENT_HOSTNAME", "DD_AGENT_HOST"), first("DD_TRACE_AGENT_PORT", "DD_AGENT_PORT")
	if host == "" && port == "" {
		if _, err := os.Stat(DefaultSocket); err == nil {
			return "unix://" + DefaultSocket
		}
	}
	if host == "" {
		host = "localhost"
	}
	if port == "" {
		port = DefaultPort
	}
	return "http://" + net.JoinHostPort(strings.Trim(host, "[]"), port)
}

// address returns the base of the Agent's addresses, and the socket that it listens on, if it is
// one.
func (c Config) address() (base, socket string, err error) {
	parsed, err := url.Parse(c.URL)
	switch {
	case err != nil:
	case parsed.Scheme == "http" && parsed.Host != "":
		return "http://" + parsed.Host + strings.TrimSuffix(parsed.Path, "/"), "", nil
	case parsed.Scheme == "unix" && parsed.Host == "" && strings.HasPrefix(parsed.Path, "/"):
		return "http://localhost", parsed.Path, nil
	}
	return "", "", fmt.Errorf("the Datadog Agent's address %q is neither http://HOST:PORT nor unix:///PATH", c.URL)
}

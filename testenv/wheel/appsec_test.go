package wheel

import (
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"sca-probe/testenv"
	"sca-probe/testenv/rcserver"
)

// appSec tells what of AppSec's configurations has reached its engine of rules, and whether AppSec is on.
const appSec = `
from ddtrace.appsec._processor import AppSecSpanProcessor
try:
    from ddtrace.internal.settings.asm import config as asm
except ImportError:  # before 4.x
    from ddtrace.settings.asm import config as asm
RULES, _update_rules = [], AppSecSpanProcessor._update_rules
def _updated(self, *rules):
    RULES.append(str(rules))
    return _update_rules(self, *rules)
AppSecSpanProcessor._update_rules = _updated
`

const (
	ours     = `{"sca_instrumentation": {"targets": ["shapes:plain"]}}`
	asmData  = "datadog/2/ASM_DATA/blocked/config"
	blocked  = `{"rules_data": [{"id": "blocked_ips", "type": "ip_with_expiration", "data": [{"value": "192.0.2.1", "expiration": 9999999999}]}]}`
	arrived  = `any("192.0.2.1" in rules for rules in RULES)`
	features = "datadog/2/ASM_FEATURES/activation/config"
)

// startBesideAppSec starts a program whose ddtrace polls a server that answers as the Agent does.
func startBesideAppSec(t *testing.T, r release, gates ...string) (*program, *rcserver.Server) {
	t.Helper()
	server := rcserver.New()
	web := httptest.NewServer(server)
	t.Cleanup(web.Close)
	e := withWheel(t, r)
	p := start(t, e, []string{e.bin("ddtrace-run")}, append(gates, "DD_TRACE_AGENT_URL="+web.URL, "DD_REMOTE_CONFIG_POLL_INTERVAL_SECONDS=0.2")...)
	p.Exec(appSec)
	return p, server
}

func set(t *testing.T, server *rcserver.Server, path, content string) {
	t.Helper()
	if err := server.Set(path, []byte(content)); err != nil {
		t.Fatal(err)
	}
}

// untilClient waits until a client of the server says what is wanted.
func (p *program) untilClient(server *rcserver.Server, what string, holds func(rcserver.Client) bool) {
	p.t.Helper()
	for deadline := time.Now().Add(patience); !slices.ContainsFunc(server.Clients(), holds); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("no client %s after %s: %+v", what, patience, server.Clients())
		}
	}
}

// TestAppSecOfEachLine has AppSec's configurations and ours arrive by one client of each line of ddtrace, each told of to
// the Agent by itself.
func TestAppSecOfEachLine(t *testing.T) {
	testenv.EachDdtraceRelease(t, func(t *testing.T, r release) {
		p, server := startBesideAppSec(t, r, testenv.Gates...)
		set(t, server, configuration, ours)
		set(t, server, asmData, blocked)
		p.until(isPatched)
		p.until(arrived)
		p.untilClient(server, "has acknowledged both", func(c rcserver.Client) bool {
			return slices.Contains(c.Products, "DEBUG") && slices.Contains(c.Products, "ASM_DD") && c.Configs["one"].State == 2 && c.Configs["blocked"].State == 2
		})
		if n := len(server.Clients()); n != 1 {
			t.Errorf("%d clients poll, want ddtrace's alone", n)
		}
		set(t, server, "datadog/2/DEBUG/bad/config", `{"sca_instrumentation": {"targets": [7]}}`)
		p.untilClient(server, "says why the malformed one is refused", func(c rcserver.Client) bool {
			return c.Configs["bad"].State == 3 && strings.Contains(c.Configs["bad"].Error, "neither a string nor an object") && c.Configs["one"].State == 2
		})
		server.Remove(configuration)
		p.until(isReverted)
	})
}

// TestOneClickOfEachLine has Remote Configuration switch AppSec on, off and on again in each line of ddtrace.
func TestOneClickOfEachLine(t *testing.T) {
	testenv.EachDdtraceRelease(t, func(t *testing.T, r release) {
		p, server := startBesideAppSec(t, r, testenv.Gates[0], testenv.Gates[2])
		set(t, server, configuration, ours)
		p.untilClient(server, "asks for our product", func(c rcserver.Client) bool {
			return c.Polls > 5 && slices.Contains(c.Products, "DEBUG") && slices.Contains(c.Products, "ASM_FEATURES")
		})
		if files := testenv.EngineFiles(t, p.PID()); p.Eval("asm._asm_enabled") == true || len(files) > 0 {
			t.Errorf("mapped while AppSec is off are %v", files)
		}
		for range 2 {
			set(t, server, features, `{"asm": {"enabled": true}}`)
			p.until(`asm._asm_enabled`)
			p.until(isPatched)
			set(t, server, features, `{"asm": {"enabled": false}}`)
			p.until(`not asm._asm_enabled`)
			p.until(isReverted)
		}
	})
}

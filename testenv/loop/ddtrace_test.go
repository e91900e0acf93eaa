package loop

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sca-probe/pkg/observer"
	"sca-probe/pkg/rc"
	"sca-probe/testenv"
)

const shopPath = "datadog/2/DEBUG/one/config"

// verdicts asks the observer about each worker, while work runs.
func verdicts(t *testing.T, workers map[int]testenv.ShopWorker, work func()) map[int]observer.Report {
	t.Helper()
	target, err := rc.ParseTarget(testenv.ShopTarget)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	attached := make(chan struct{}, len(workers))
	type outcome struct {
		pid     int
		reports []observer.Report
		err     error
	}
	outcomes := make(chan outcome, len(workers))
	for pid := range workers {
		go func() {
			reports, err := observer.Verify(ctx, pid, []rc.Target{target}, func() { attached <- struct{}{} })
			outcomes <- outcome{pid, reports, err}
		}()
	}
	for range workers {
		select {
		case <-attached:
		case o := <-outcomes:
			t.Fatalf("observing worker %d: %v", o.pid, o.err)
		}
	}
	work()
	cancel()
	reports := map[int]observer.Report{}
	for range workers {
		o := <-outcomes
		if o.err != nil {
			t.Fatalf("observing worker %d: %v", o.pid, o.err)
		}
		reports[o.pid] = o.reports[0]
	}
	return reports
}

// TestRemoteConfigurationByDdtrace has ddtrace's own Remote Configuration instrument a function in each
// worker of a service that takes traffic, and take it back. ddtrace's own SCA, of 4.x, instruments the same one.
func TestRemoteConfigurationByDdtrace(t *testing.T) {
	testenv.EachDdtraceRelease(t, func(t *testing.T, r testenv.DdtraceRelease) {
		agent := testenv.StartTestAgent(t)
		s := testenv.Shop{Environment: r.Environment(t), Release: r, Prefix: []string{testenv.ProbePath(t), "run", "--"},
			Workers: 4, Agent: agent.URL, Env: []string{"SCA_PROBE_RC_SOURCE=ddtrace", "DD_TELEMETRY_HEARTBEAT_INTERVAL=1"}}
		s.Start(t)
		s.CallEach()
		agent.Configure(shopPath, testenv.Payload(map[string]any{
			"target": testenv.ShopTarget, "package": "requests", "advisories": []string{"GHSA-of-this-test"},
		}))
		workers := s.EveryWorker("patched")
		for pid, report := range verdicts(t, workers, s.CallEach) {
			if report.Verdict != observer.Executed || counts(report)[observer.EngineCount] == 0 {
				t.Errorf("worker %d: %s (%s), counts %v, want executed", pid, report.Verdict, report.Reason, counts(report))
			}
		}
		if r.Line() == "4" { // 2.x and 3.x have no report of reachability
			want := fmt.Sprintf(`{"id":"GHSA-of-this-test","reached":[{"path":"shop.py","symbol":"call","line":%d}]}`, lineOfCall(t))
			quoted, _ := json.Marshal(want)
			s.Until("the Agent is told of "+want, func() bool { return requestHas(agent, "telemetry", string(quoted)) })
		}
		s.Until("the Agent is told that it is applied", func() bool {
			return requestHas(agent, "/v0.7/config", `"id":"one","version":0,"product":"DEBUG","apply_state":2`)
		})

		hits := 0
		for _, worker := range s.EveryWorker("patched") {
			hits += worker.Targets[0].Hits
		}
		s.Until(fmt.Sprintf("%d hits arrive as a metric", hits), func() bool { return sumOfMetric(agent, "sca_probe.hits") == float64(hits) })

		after := verdicts(t, workers, func() {
			agent.Configure("datadog/2/DEBUG/other/config", testenv.Payload(7))
			s.EveryWorker("reverted")
			s.CallEach()
		})
		for pid, report := range after {
			if got := counts(report); report.Verdict != observer.Reverted || got[observer.StaticProbe] != 0 || got[observer.EvalLoop] == 0 {
				t.Errorf("worker %d: %s (%s), counts %v after the withdrawal, want reverted", pid, report.Verdict, report.Reason, got)
			}
		}
		for pid := range s.EveryWorker("reverted") {
			if _, before := workers[pid]; !before {
				t.Errorf("worker %d is not one of those before, %v", pid, workers)
			}
		}
		s.Until("the Agent is told that the other is refused, and why", func() bool {
			return requestHas(agent, "/v0.7/config", "neither a string nor an object")
		})
	})
}

// lineOfCall is where the service calls requests.
func lineOfCall(t *testing.T) int {
	t.Helper()
	source, err := os.ReadFile(filepath.Join(testenv.Root(), "testenv", "subjects", "shop.py"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(strings.Split(string(source), "# LINE")[0], "\n") + 1
}

// sumOfMetric adds up the points of a metric of AppSec's that telemetry has brought to the Agent.
func sumOfMetric(agent *testenv.TestAgent, name string) float64 {
	sum := 0.0
	var walk func(value, namespace any) // which 3.x and 2.x name once for all metrics in it
	walk = func(value, namespace any) {
		switch value := value.(type) {
		case []any:
			for _, item := range value {
				walk(item, namespace)
			}
		case map[string]any:
			if own, ok := value["namespace"]; ok {
				namespace = own
			}
			if value["metric"] == name && namespace == "appsec" {
				points, _ := value["points"].([]any)
				for _, point := range points {
					if pair, ok := point.([]any); ok && len(pair) == 2 {
						n, _ := pair[1].(float64)
						sum += n
					}
				}
			}
			for _, item := range value {
				walk(item, namespace)
			}
		}
	}
	for _, request := range agent.Requests() {
		var body any
		if strings.Contains(request.URL, "telemetry") && json.Unmarshal(request.Body, &body) == nil {
			walk(body, nil)
		}
	}
	return sum
}

// requestHas reports whether a client has sent a text, but for spaces, to a path of the Agent's.
func requestHas(agent *testenv.TestAgent, path, text string) bool {
	for _, request := range agent.Requests() {
		body := string(request.Body)
		if strings.Contains(request.URL, path) && strings.Contains(strings.ReplaceAll(body, " ", ""), strings.ReplaceAll(text, " ", "")) {
			return true
		}
	}
	return false
}

package loop

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sca-probe/pkg/observer"
	"sca-probe/pkg/rc"
	"sca-probe/testenv"
)

const (
	shopWorkers = 4
	shopTarget  = "requests.sessions:Session.send"
	shopPath    = "datadog/2/DEBUG/one/config"
)

type shop struct {
	t      *testing.T
	url    string
	output *os.File
}

type workerState struct {
	PID     int `json:"pid"`
	Targets []struct {
		Target string `json:"target"`
		State  string `json:"state"`
		Reason string `json:"reason"`
		Hits   int    `json:"hits"`
	} `json:"targets"`
}

// startShop starts testenv/subjects/shop.py under gunicorn and ddtrace-run, with the engine at hand.
func startShop(t *testing.T, agent *testenv.TestAgent) *shop {
	t.Helper()
	venv := filepath.Join(testenv.Ddtrace(t, "3.12", testenv.NewestDdtrace), "bin")
	address := fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t))
	output, err := os.Create(filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(testenv.ProbePath(t), "run", "--", filepath.Join(venv, "ddtrace-run"), filepath.Join(venv, "gunicorn"),
		"-w", fmt.Sprint(shopWorkers), "-b", address, "shop:app")
	cmd.Dir = filepath.Join(testenv.Root(), "testenv", "subjects")
	cmd.Env = append(os.Environ(), append(testenv.Gates, "SCA_PROBE_RC_SOURCE=ddtrace", "DD_TRACE_AGENT_URL="+agent.URL,
		"DD_REMOTE_CONFIG_POLL_INTERVAL_SECONDS=0.2", "DD_TELEMETRY_HEARTBEAT_INTERVAL=1", "PYTHONDONTWRITEBYTECODE=1")...)
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
	s := &shop{t: t, url: "http://" + address, output: output}
	s.until("the service answers", func() bool { return s.get("/call") != nil })
	return s
}

func (s *shop) get(path string) []byte {
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get(s.url + path)
	if err != nil {
		return nil
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		return nil
	}
	return body
}

func (s *shop) until(what string, holds func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(2 * patience); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("not so after %s: %s", 2*patience, what)
		}
	}
}

// everyWorker waits until the target is in a state in each worker, and returns the workers.
func (s *shop) everyWorker(state string) map[int]bool {
	s.t.Helper()
	workers := map[int]bool{}
	s.until(fmt.Sprintf("%s in %d workers", state, shopWorkers), func() bool {
		var worker workerState
		if json.Unmarshal(s.get("/state"), &worker) == nil {
			for _, target := range worker.Targets {
				if target.Target == shopTarget && target.State == state {
					workers[worker.PID] = true
				}
			}
		}
		return len(workers) == shopWorkers
	})
	return workers
}

// verdicts asks the observer about each worker, while work runs.
func (s *shop) verdicts(workers map[int]bool, work func()) map[int]observer.Report {
	s.t.Helper()
	target, err := rc.ParseTarget(shopTarget)
	if err != nil {
		s.t.Fatal(err)
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
			s.t.Fatalf("observing worker %d: %v", o.pid, o.err)
		}
	}
	work()
	cancel()
	reports := map[int]observer.Report{}
	for range workers {
		o := <-outcomes
		if o.err != nil {
			s.t.Fatalf("observing worker %d: %v", o.pid, o.err)
		}
		reports[o.pid] = o.reports[0]
	}
	return reports
}

// callEach calls until each worker has taken a call.
func (s *shop) callEach() {
	taken := map[string]bool{}
	s.until("each worker takes a call", func() bool {
		taken[string(s.get("/call"))] = true
		return len(taken) == shopWorkers
	})
}

// TestRemoteConfigurationByDdtrace has ddtrace's own Remote Configuration instrument a function in each
// worker of a service that takes traffic, and take it back. ddtrace's own SCA instruments the same one.
func TestRemoteConfigurationByDdtrace(t *testing.T) {
	agent := testenv.StartTestAgent(t)
	s := startShop(t, agent)
	agent.Configure(shopPath, testenv.Payload(map[string]any{
		"target": shopTarget, "package": "requests", "advisories": []string{"GHSA-of-this-test"},
	}))
	workers := s.everyWorker("patched")
	for pid, report := range s.verdicts(workers, s.callEach) {
		if report.Verdict != observer.Executed || counts(report)[observer.EngineCount] == 0 {
			t.Errorf("worker %d: %s (%s), counts %v, want executed", pid, report.Verdict, report.Reason, counts(report))
		}
	}
	source, err := os.ReadFile(filepath.Join(testenv.Root(), "testenv", "subjects", "shop.py"))
	if err != nil {
		t.Fatal(err)
	}
	line := strings.Count(strings.Split(string(source), "# LINE")[0], "\n") + 1
	want := fmt.Sprintf(`{"id":"GHSA-of-this-test","reached":[{"path":"shop.py","symbol":"call","line":%d}]}`, line)
	quoted, _ := json.Marshal(want)
	s.until("the Agent is told of "+want, func() bool { return requestHas(agent, "telemetry", string(quoted)) })
	s.until("the Agent is told that it is applied", func() bool {
		return requestHas(agent, "/v0.7/config", `"id":"one","version":0,"product":"DEBUG","apply_state":2`)
	})

	hits := s.hitsOfWorkers()
	s.until(fmt.Sprintf("%d hits arrive as a metric", hits), func() bool { return sumOfMetric(agent, "sca_probe.hits") == float64(hits) })

	after := s.verdicts(workers, func() {
		agent.Configure("datadog/2/DEBUG/other/config", testenv.Payload(7))
		if reverted := s.everyWorker("reverted"); fmt.Sprint(reverted) != fmt.Sprint(workers) {
			t.Errorf("reverted in %v, patched before in %v", reverted, workers)
		}
		s.callEach()
	})
	for pid, report := range after {
		if got := counts(report); report.Verdict != observer.Reverted || got[observer.StaticProbe] != 0 || got[observer.EvalLoop] == 0 {
			t.Errorf("worker %d: %s (%s), counts %v after the withdrawal, want reverted", pid, report.Verdict, report.Reason, got)
		}
	}
	s.until("the Agent is told that the other is refused, and why", func() bool {
		return requestHas(agent, "/v0.7/config", "neither a string nor an object")
	})
}

// hitsOfWorkers adds up what the workers say of their hits.
func (s *shop) hitsOfWorkers() int {
	hits := map[int]int{}
	s.until("each worker says what it has counted", func() bool {
		var worker workerState
		if json.Unmarshal(s.get("/state"), &worker) == nil {
			for _, target := range worker.Targets {
				hits[worker.PID] = target.Hits
			}
		}
		return len(hits) == shopWorkers
	})
	sum := 0
	for _, n := range hits {
		sum += n
	}
	return sum
}

// sumOfMetric adds up the points of a metric of AppSec's that telemetry has brought to the Agent.
func sumOfMetric(agent *testenv.TestAgent, name string) float64 {
	sum := 0.0
	var walk func(any)
	walk = func(value any) {
		switch value := value.(type) {
		case []any:
			for _, item := range value {
				walk(item)
			}
		case map[string]any:
			if value["metric"] == name && value["namespace"] == "appsec" {
				points, _ := value["points"].([]any)
				for _, point := range points {
					if pair, ok := point.([]any); ok && len(pair) == 2 {
						n, _ := pair[1].(float64)
						sum += n
					}
				}
			}
			for _, item := range value {
				walk(item)
			}
		}
	}
	for _, request := range agent.Requests() {
		var body any
		if strings.Contains(request.URL, "telemetry") && json.Unmarshal(request.Body, &body) == nil {
			walk(body)
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

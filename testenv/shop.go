package testenv

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
)

const (
	// ShopTarget is what every call of a [Shop] calls.
	ShopTarget = "requests.sessions:Session.send"

	shopPatience = time.Minute
)

// A Shop is testenv/subjects/shop.py, a Flask service, under ddtrace-run and gunicorn, which forks its workers.
type Shop struct {
	// Environment is the virtual environment that it runs in, with Release in it.
	Environment string
	Release     DdtraceRelease
	Prefix      []string // a command before ddtrace-run
	Workers     int
	Agent       string // the URL of the Datadog Agent
	Env         []string

	t   *testing.T
	url string
}

// A ShopWorker is what a worker says of itself.
type ShopWorker struct {
	PID     int
	Targets []struct {
		Target, State, Reason string
		Hits                  int
	}
}

// Start starts the service and waits until it answers. The test's cleanup ends it.
func (s *Shop) Start(t *testing.T) {
	t.Helper()
	address := fmt.Sprintf("127.0.0.1:%d", FreePort(t))
	s.t, s.url = t, "http://"+address
	bin := func(name string) string { return filepath.Join(s.Environment, "bin", name) }
	argv := slices.Concat(s.Prefix, []string{bin("ddtrace-run"), bin("gunicorn"), "-w", fmt.Sprint(s.Workers), "-b", address})
	if s.Release.Line() != "4" {
		// Has encodings.idna imported before the fork. Otherwise the thread of ddtrace's that looks for the Agent imports
		// it, now and then just as gunicorn forks, and the worker waits for the lock of that import for ever.
		argv = append(argv, "--preload")
	}
	output, err := os.Create(filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	cmd := exec.Command(argv[0], append(argv[1:], "shop:app")...)
	cmd.Dir = filepath.Join(Root(), "testenv", "subjects")
	cmd.Env = slices.Concat(os.Environ(), Gates, []string{"DD_TRACE_AGENT_URL=" + s.Agent,
		"DD_REMOTE_CONFIG_POLL_INTERVAL_SECONDS=0.2", "PYTHONDONTWRITEBYTECODE=1"}, s.Env)
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
	s.Until("the service answers", func() bool { return s.get("/call") != nil })
}

func (s *Shop) get(path string) []byte {
	client := http.Client{Timeout: shopPatience, Transport: &http.Transport{DisableKeepAlives: true}}
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

// Until waits until something holds.
func (s *Shop) Until(what string, holds func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(shopPatience); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("not so after %s: %s", shopPatience, what)
		}
	}
}

// EveryWorker waits until the target is in one of some states in each worker, and returns what they said, by PID.
func (s *Shop) EveryWorker(states ...string) map[int]ShopWorker {
	s.t.Helper()
	there, last := map[int]ShopWorker{}, map[int]ShopWorker{}
	defer func() {
		if s.t.Failed() {
			s.t.Logf("not %v in %d workers; what they said last: %+v", states, s.Workers, last)
		}
	}()
	s.Until(fmt.Sprintf("%v in each worker", states), func() bool {
		var worker ShopWorker
		if json.Unmarshal(s.get("/state"), &worker) != nil {
			return false
		}
		last[worker.PID] = worker
		for _, target := range worker.Targets {
			if target.Target == ShopTarget && slices.Contains(states, target.State) {
				there[worker.PID] = worker
			}
		}
		return len(there) == s.Workers
	})
	return there
}

// CallEach calls until each worker has taken a call.
func (s *Shop) CallEach() {
	s.t.Helper()
	taken := map[string]bool{}
	s.Until("each worker takes a call", func() bool {
		taken[string(s.get("/call"))] = true
		return len(taken) == s.Workers
	})
}

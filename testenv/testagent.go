package testenv

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// A TestAgent is a running ddapm-test-agent, Datadog's stand-in for its Agent in tests of tracers.
type TestAgent struct {
	URL    string // "http://127.0.0.1:PORT"
	Socket string // the path of the socket that it listens on too

	t     testing.TB
	port  int
	stop  func()
	token string
}

// StartTestAgent starts a test agent, which ends with the test.
func StartTestAgent(t testing.TB) *TestAgent {
	t.Helper()
	agent := &TestAgent{t: t, port: FreePort(t), Socket: filepath.Join(t.TempDir(), "apm.socket")}
	agent.URL = "http://127.0.0.1:" + strconv.Itoa(agent.port)
	agent.Start()
	t.Cleanup(func() { agent.Stop() })
	return agent
}

// Start starts it again after Stop, at the same addresses, with nothing configured.
func (a *TestAgent) Start() {
	a.t.Helper()
	program := filepath.Join(Root(), "build", "agent-venv", "bin", "ddapm-test-agent")
	if _, err := os.Stat(program); err != nil {
		Missing(a.t, "no ddapm-test-agent: run `make test-agent`")
	}
	cmd := exec.Command(program,
		"--host", "127.0.0.1", "--port", strconv.Itoa(a.port), "--trace-uds-socket", a.Socket, "--web-ui-port", "0",
		"--otlp-http-port", strconv.Itoa(FreePort(a.t)), "--otlp-grpc-port", strconv.Itoa(FreePort(a.t)))
	cmd.Dir = filepath.Dir(a.Socket)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + cmd.Dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var output lockedBuffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	a.stop = func() {
		_ = cmd.Process.Kill()
		<-exited
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		answer, err := http.Get(a.URL + "/info")
		if err == nil {
			answer.Body.Close()
			return
		}
		select {
		case <-exited:
			a.t.Fatalf("ddapm-test-agent ended: %s", output.String())
		default:
		}
		if time.Now().After(deadline) {
			a.t.Fatalf("ddapm-test-agent does not answer: %v\n%s", err, output.String())
		}
	}
}

// Stop ends it.
func (a *TestAgent) Stop() { a.stop() }

// Session returns the same agent as clients see it that send the token.
func (a *TestAgent) Session(token string) *TestAgent {
	session := *a
	session.token = token
	return &session
}

// Configure makes one configuration all that the agent has. The payload is what JSON makes of it.
func (a *TestAgent) Configure(path string, payload any) {
	a.t.Helper()
	a.exchange(http.MethodPost, "/test/session/responses/config/path", map[string]any{"path": path, "msg": payload})
}

// Answer sets the whole answer to requests for Remote Configuration.
func (a *TestAgent) Answer(answer any) {
	a.t.Helper()
	a.exchange(http.MethodPost, "/test/session/responses/config", answer)
}

// A TestAgentRequest is what a client sent.
type TestAgentRequest struct {
	URL     string            `json:"url"`
	Method  string            `json:"method"`
	Headers map[string]string `json:"headers"`
	Body    []byte            `json:"body"`
}

// Requests returns what clients have sent, in order.
func (a *TestAgent) Requests() []TestAgentRequest {
	a.t.Helper()
	var requests []TestAgentRequest
	if err := json.Unmarshal(a.exchange(http.MethodGet, "/test/session/requests", nil), &requests); err != nil {
		a.t.Fatal(err)
	}
	return requests
}

func (a *TestAgent) exchange(method, path string, body any) []byte {
	a.t.Helper()
	content, err := json.Marshal(body)
	if err != nil {
		a.t.Fatal(err)
	}
	request, err := http.NewRequest(method, a.URL+path, bytes.NewReader(content))
	if err != nil {
		a.t.Fatal(err)
	}
	if a.token != "" {
		request.Header.Set("X-Datadog-Test-Session-Token", a.token)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		a.t.Fatal(err)
	}
	defer answer.Body.Close()
	content, err = io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode >= http.StatusMultipleChoices {
		err = fmt.Errorf("%s: %s", answer.Status, content)
	}
	if err != nil {
		a.t.Fatalf("%s %s: %v", method, path, err)
	}
	return content
}

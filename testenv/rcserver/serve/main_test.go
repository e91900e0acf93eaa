package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sca-probe/pkg/rc/agent"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs the command and returns the lines that it prints.
func start(t *testing.T, args ...string) <-chan string {
	t.Helper()
	reader, writer := io.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := command()
	cmd.SetArgs(args)
	cmd.SetOut(writer)
	done := make(chan struct{})
	go func() {
		defer close(done)
		writer.CloseWithError(cmd.ExecuteContext(ctx))
	}()
	lines := make(chan string, 1000)
	go func() {
		defer close(lines)
		scanner := bufio.NewScanner(reader)
		for scanner.Scan() {
			lines <- scanner.Text()
		}
		if err := scanner.Err(); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return lines
}

// line returns the next line that holds a text.
func line(t *testing.T, lines <-chan string, holds string) string {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case line, open := <-lines:
			if !open {
				t.Fatalf("it ended without saying %q", holds)
			}
			if strings.Contains(line, holds) {
				return line
			}
		case <-deadline:
			t.Fatalf("it does not say %q", holds)
		}
	}
}

func put(t *testing.T, directory, name, content string) {
	t.Helper()
	path := filepath.Join(directory, name)
	if err := os.WriteFile(path+".next", []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".next", path); err != nil {
		t.Fatal(err)
	}
}

func TestServe(t *testing.T) {
	directory := t.TempDir()
	put(t, directory, "one.json", `{"sca_instrumentation": {"targets": ["a:b"]}}`)
	socket := filepath.Join(t.TempDir(), "apm.socket")
	lines := start(t, "--listen", "127.0.0.1:0", "--socket", socket, "--product", "SCA", "--json", directory)
	line(t, lines, "listening on http://127.0.0.1:")
	url := strings.TrimPrefix(line(t, lines, "listening on unix:"), "listening on ")

	source, err := agent.NewSource(agent.Config{
		URL: url, Product: "SCA", PollInterval: 20 * time.Millisecond, Timeout: 5 * time.Second,
		Tracer: agent.Tracer{RuntimeID: "r", Language: "python", Service: "shop"},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	updates := source.Watch(ctx)
	t.Cleanup(func() {
		cancel()
		for range updates {
		}
	})
	update := <-updates
	if update.Err != nil || len(update.Set.Targets) != 1 {
		t.Fatalf("%+v", update)
	}
	update.Ack(nil)
	said := line(t, lines, `"one":"acknowledged"`)
	var client struct{ Service, Error string }
	if err := json.Unmarshal([]byte(said), &client); err != nil || client.Service != "shop" || client.Error != "" {
		t.Errorf("%s: %+v, %v", said, client, err)
	}
	put(t, directory, "two.json", "{}")
	if update := <-updates; update.Err == nil {
		t.Errorf("%+v", update)
	}
	line(t, lines, `"two":"error: datadog/2/SCA/two/config: malformed`)
	if err := os.Remove(filepath.Join(directory, "two.json")); err != nil {
		t.Fatal(err)
	}
	line(t, lines, `{"one":"acknowledged"}`)
}

func TestServeRefuses(t *testing.T) {
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"--listen", "0.0.0.0:0", t.TempDir()}, "not an address of this machine alone"},
		{[]string{"--listen", "8126", t.TempDir()}, "missing port"},
		{[]string{"--listen", "127.0.0.1:0", filepath.Join(t.TempDir(), "none")}, "no such file"},
		{nil, "accepts 1 arg"},
	} {
		cmd := command()
		cmd.SetArgs(append([]string{}, c.args...))
		if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: %v", c.args, err)
		}
	}
}

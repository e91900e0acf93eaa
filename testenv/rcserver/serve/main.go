// Command serve is a Datadog Agent's Remote Configuration, for demonstrations: it serves the
// payloads of a directory to tracers and engines on this machine, and prints what they say became
// of them. Edit, add and remove the files while it runs.
//
//	go run ./testenv/rcserver/serve --listen 127.0.0.1:8126 configs/
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"sca-probe/testenv/rcserver"
)

// lookEvery is how often the directory and the clients are looked at.
const lookEvery = 100 * time.Millisecond

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cmd := command()
	if err := cmd.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "serve:", err)
		os.Exit(1)
	}
}

type options struct {
	listen, socket, product string
	json                    bool
}

func command() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "serve DIRECTORY",
		Short: "Serve the payloads of a directory (*.json) as a Datadog Agent's Remote Configuration",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return serve(cmd.Context(), o, args[0], cmd.OutOrStdout())
		},
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.Flags().StringVar(&o.listen, "listen", "127.0.0.1:8126", "address to listen on, of this machine only; port 0 takes a free one")
	cmd.Flags().StringVar(&o.socket, "socket", "", "Unix socket to listen on too")
	cmd.Flags().StringVar(&o.product, "product", "DEBUG", "product that the payloads are served under")
	cmd.Flags().BoolVar(&o.json, "json", false, "print what clients say as JSON, one object a line")
	return cmd
}

func serve(ctx context.Context, o options, directory string, output io.Writer) error {
	server := rcserver.New()
	if err := load(server, o.product, directory); err != nil {
		return err
	}
	listeners, err := listen(o)
	if err != nil {
		return err
	}
	web := http.Server{Handler: server, ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, len(listeners))
	for _, listener := range listeners {
		go func() { failed <- web.Serve(listener) }()
		fmt.Fprintf(output, "listening on %s\n", address(listener))
	}
	defer web.Close()
	said := map[string]string{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-time.After(lookEvery):
		}
		if err := load(server, o.product, directory); err != nil {
			return err
		}
		for _, client := range server.Clients() {
			if line := describe(client, o.json); said[client.ID] != line {
				said[client.ID] = line
				fmt.Fprintln(output, line)
			}
		}
	}
}

func listen(o options) ([]net.Listener, error) {
	host, _, err := net.SplitHostPort(o.listen)
	if err != nil {
		return nil, fmt.Errorf("--listen: %w", err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("--listen %s is not an address of this machine alone: take 127.0.0.1", o.listen)
	}
	tcp, err := net.Listen("tcp", o.listen)
	if err != nil {
		return nil, err
	}
	listeners := []net.Listener{tcp}
	if o.socket != "" {
		unix, err := net.Listen("unix", o.socket)
		if err != nil {
			tcp.Close()
			return nil, err
		}
		listeners = append(listeners, unix)
	}
	return listeners, nil
}

func address(listener net.Listener) string {
	if listener.Addr().Network() == "unix" {
		return "unix://" + listener.Addr().String()
	}
	return "http://" + listener.Addr().String()
}

// load makes the server's configurations those of the directory. The name of a file, without
// ".json", is the configuration's identifier.
func load(server *rcserver.Server, product, directory string) error {
	entries, err := os.ReadDir(directory)
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, entry := range entries {
		id, isPayload := strings.CutSuffix(entry.Name(), ".json")
		if !isPayload || strings.HasPrefix(id, ".") {
			continue
		}
		content, err := os.ReadFile(filepath.Join(directory, entry.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		path := fmt.Sprintf("datadog/2/%s/%s/config", product, id)
		if err := server.Set(path, content); err != nil {
			return err
		}
		there[path] = true
	}
	for _, path := range server.Paths() {
		if !there[path] {
			server.Remove(path)
		}
	}
	return nil
}

// describe returns what a client said, in one line.
func describe(client rcserver.Client, asJSON bool) string {
	states := map[string]string{}
	for id, state := range client.Configs {
		states[id] = state.String()
	}
	if asJSON {
		line, err := json.Marshal(map[string]any{
			"client": client.ID, "service": client.Service, "products": client.Products,
			"version": client.TargetsVersion, "error": client.Error, "configurations": states,
		})
		if err != nil {
			panic(err) // of strings and numbers
		}
		return string(line)
	}
	line := fmt.Sprintf("client %.8s (%s) has version %d", client.ID, strings.Join(client.Products, " "), client.TargetsVersion)
	if client.Service != "" {
		line += " for service " + client.Service
	}
	for _, id := range slices.Sorted(maps.Keys(states)) {
		line += fmt.Sprintf("\n  %s: %s", id, states[id])
	}
	if client.Error != "" {
		line += "\n  it refused the last answer: " + client.Error
	}
	return line
}

// Package rcserver is Remote Configuration as a Datadog Agent serves it to tracers, for tests and
// demonstrations: /info and /v0.7/config over HTTP. It holds any number of configurations, sends
// a client the ones of its products that it does not have yet, and keeps what the client says
// became of them. It refuses what the Agent refuses. What it does not do is sign: no tracer looks.
package rcserver

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// A Client is what one client said last.
type Client struct {
	ID       string
	Products []string
	Service  string
	// TargetsVersion is the version of the configurations that the client has.
	TargetsVersion int64
	RootVersion    int64
	// BackendState is what came with that version for the client to send back.
	BackendState string
	// Error says why the client refused the last answer.
	Error string
	// Configs is what became of each configuration, by its identifier.
	Configs map[string]ApplyState
	// Cached are the paths of the files that the client has.
	Cached []string
	// Sent are the paths of the files that the answer held.
	Sent []string
	// Polls counts the requests.
	Polls int
}

// An ApplyState is what a client says became of a configuration.
type ApplyState struct {
	Version uint64
	State   uint64 // 0 unknown, 1 unacknowledged, 2 acknowledged, 3 error
	Error   string
}

// String returns the state in words.
func (s ApplyState) String() string {
	words := []string{"unknown", "unacknowledged", "acknowledged", "error"}
	if s.State >= uint64(len(words)) {
		return fmt.Sprintf("state %d", s.State)
	}
	if s.Error != "" {
		return words[s.State] + ": " + s.Error
	}
	return words[s.State]
}

// A Server is an http.Handler. Its methods may be called at any time.
type Server struct {
	mu      sync.Mutex
	version int64
	files   map[string]file
	clients map[string]*Client
	off     bool
}

type file struct {
	content []byte
	version uint64
}

// New returns a server with no configuration.
func New() *Server {
	return &Server{version: 1, files: map[string]file{}, clients: map[string]*Client{}}
}

// Set adds or replaces a configuration. Its path is "datadog/ORG/PRODUCT/ID/NAME", ORG a number,
// or "employee/PRODUCT/ID/NAME".
func (s *Server) Set(path string, content []byte) error {
	if _, _, err := parsePath(path); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old, found := s.files[path]
	if found && bytes.Equal(old.content, content) {
		return nil
	}
	s.version++
	s.files[path] = file{content: bytes.Clone(content), version: old.version + 1}
	return nil
}

// Remove withdraws a configuration.
func (s *Server) Remove(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, found := s.files[path]; found {
		s.version++
		delete(s.files, path)
	}
}

// Paths returns the paths of the configurations, in order.
func (s *Server) Paths() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.files))
}

// SwitchOff makes it an Agent without Remote Configuration, or with it again.
func (s *Server) SwitchOff(off bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.off = off
}

// Version returns the version of the configurations, which grows with each change.
func (s *Server) Version() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.version
}

// Clients returns what each client said last, in the order of their identifiers.
func (s *Server) Clients() []Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	var clients []Client
	for _, id := range slices.Sorted(maps.Keys(s.clients)) {
		clients = append(clients, *s.clients[id])
	}
	return clients
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	off := s.off
	s.mu.Unlock()
	switch {
	case r.URL.Path == "/info":
		endpoints := []string{"/v0.4/traces"}
		if !off {
			endpoints = append(endpoints, "/v0.7/config")
		}
		respond(w, map[string]any{"version": "7.99.0", "endpoints": endpoints})
	case r.URL.Path == "/v0.7/config" && !off:
		var asked question
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 16<<20)).Decode(&asked); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if err := asked.check(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		respond(w, s.answer(asked))
	default:
		http.NotFound(w, r)
	}
}

func respond(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body) // the client has gone
}

// question is the part of ClientGetConfigsRequest that a tracer fills in (datadog-agent,
// pkg/proto/datadog/remoteconfig/remoteconfig.proto).
type question struct {
	Client *struct {
		ID       string   `json:"id"`
		Products []string `json:"products"`
		IsTracer bool     `json:"is_tracer"`
		Tracer   *struct {
			RuntimeID string `json:"runtime_id"`
			Language  string `json:"language"`
			Service   string `json:"service"`
		} `json:"client_tracer"`
		State *struct {
			RootVersion    int64 `json:"root_version"`
			TargetsVersion int64 `json:"targets_version"`
			Configs        []struct {
				ID         string `json:"id"`
				Version    uint64 `json:"version"`
				Product    string `json:"product"`
				ApplyState uint64 `json:"apply_state"`
				ApplyError string `json:"apply_error"`
			} `json:"config_states"`
			HasError     bool   `json:"has_error"`
			Error        string `json:"error"`
			BackendState []byte `json:"backend_client_state"`
		} `json:"state"`
		Capabilities []byte `json:"capabilities"`
	} `json:"client"`
	Cached []struct {
		Path   string `json:"path"`
		Length int64  `json:"length"`
		Hashes []struct {
			Algorithm string `json:"algorithm"`
			Hash      string `json:"hash"` // hexadecimal
		} `json:"hashes"`
	} `json:"cached_target_files"`
}

// check refuses what the Agent refuses (datadog-agent, pkg/config/remote/service, validateRequest and makeFileMetaMap).
func (q question) check() error {
	c := q.Client
	switch {
	case c == nil:
		return errors.New("client is required")
	case c.ID == "":
		return errors.New("client.id is required")
	case c.State == nil:
		return errors.New("client.state is required")
	case c.State.RootVersion < 1:
		return errors.New("client.state.root_version is below 1")
	case !c.IsTracer:
		return errors.New("client.is_tracer is not set")
	case c.Tracer == nil:
		return errors.New("client.client_tracer is required")
	case c.Tracer.RuntimeID == c.ID:
		return errors.New("client.id is the runtime_id")
	case c.Tracer.Language == "":
		return errors.New("client.client_tracer.language is required")
	}
	for i, config := range c.State.Configs {
		if config.ID == "" || config.Product == "" {
			return fmt.Errorf("client.state.config_states[%d] has no id or product", i)
		}
	}
	for i, cached := range q.Cached {
		if _, _, err := parsePath(cached.Path); err != nil {
			return fmt.Errorf("cached_target_files[%d]: %w", i, err)
		}
		if cached.Length == 0 || len(cached.Hashes) == 0 {
			return fmt.Errorf("cached_target_files[%d] has no length or hash", i)
		}
		for _, hash := range cached.Hashes {
			if hash.Algorithm == "" || len(hash.Hash) == 0 {
				return fmt.Errorf("cached_target_files[%d] has an empty hash", i)
			}
			if _, err := hex.DecodeString(hash.Hash); err != nil {
				return fmt.Errorf("cached_target_files[%d]: failed to decode hash: %w", i, err)
			}
		}
	}
	return nil
}

type answer struct {
	Targets       []byte       `json:"targets,omitempty"`
	TargetFiles   []targetFile `json:"target_files,omitempty"`
	ClientConfigs []string     `json:"client_configs,omitempty"`
}

type targetFile struct {
	Path string `json:"path"`
	Raw  []byte `json:"raw"`
}

func (s *Server) answer(asked question) answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	client := s.note(asked)
	if client.TargetsVersion == s.version {
		return answer{}
	}
	cached := map[string]string{}
	for _, c := range asked.Cached {
		for _, hash := range c.Hashes {
			if hash.Algorithm == "sha256" {
				cached[c.Path] = hash.Hash
			}
		}
	}
	result := answer{Targets: s.targets()}
	for _, path := range slices.Sorted(maps.Keys(s.files)) {
		product, _, _ := parsePath(path)
		if !slices.Contains(client.Products, product) {
			continue
		}
		result.ClientConfigs = append(result.ClientConfigs, path)
		content := s.files[path].content
		if sum := sha256.Sum256(content); cached[path] != hex.EncodeToString(sum[:]) {
			result.TargetFiles = append(result.TargetFiles, targetFile{path, content})
			client.Sent = append(client.Sent, path)
		}
	}
	return result
}

// note keeps what the client said.
func (s *Server) note(asked question) *Client {
	said := asked.Client
	client := &Client{
		ID: said.ID, Products: said.Products, Service: said.Tracer.Service,
		TargetsVersion: said.State.TargetsVersion, RootVersion: said.State.RootVersion,
		BackendState: string(said.State.BackendState),
		Configs:      map[string]ApplyState{}, Polls: 1,
	}
	if before := s.clients[said.ID]; before != nil {
		client.Polls += before.Polls
	}
	if said.State.HasError {
		client.Error = said.State.Error
	}
	for _, config := range said.State.Configs {
		client.Configs[config.ID] = ApplyState{config.Version, config.ApplyState, config.ApplyError}
	}
	for _, cached := range asked.Cached {
		client.Cached = append(client.Cached, cached.Path)
	}
	slices.Sort(client.Cached)
	s.clients[said.ID] = client
	return client
}

// targets returns the targets file: what there is, for all products, with lengths and hashes.
func (s *Server) targets() []byte {
	type custom struct {
		Version uint64 `json:"v"`
	}
	type target struct {
		Custom custom            `json:"custom"`
		Hashes map[string]string `json:"hashes"`
		Length int               `json:"length"`
	}
	targets := map[string]target{}
	for path, file := range s.files {
		sum := sha256.Sum256(file.content)
		targets[path] = target{
			Custom: custom{file.version},
			Hashes: map[string]string{"sha256": hex.EncodeToString(sum[:])},
			Length: len(file.content),
		}
	}
	raw, err := json.Marshal(map[string]any{
		"signatures": []any{},
		"signed": map[string]any{
			"_type":        "targets",
			"spec_version": "1.0.0",
			"version":      s.version,
			"expires":      time.Now().Add(24 * time.Hour).UTC().Format(time.RFC3339),
			"targets":      targets,
			"custom":       map[string]any{"opaque_backend_state": fmt.Appendf(nil, "state %d", s.version)},
		},
	})
	if err != nil {
		panic(err) // of strings and numbers
	}
	return raw
}

// parsePath returns the product and the identifier in a configuration's path.
func parsePath(path string) (product, id string, err error) {
	parts := strings.Split(path, "/")
	switch {
	case slices.Contains(parts, ""):
	case len(parts) == 5 && parts[0] == "datadog" && strings.Trim(parts[1], "0123456789") == "":
		return parts[2], parts[3], nil
	case len(parts) == 4 && parts[0] == "employee":
		return parts[1], parts[2], nil
	}
	return "", "", fmt.Errorf("%q is neither datadog/ORG/PRODUCT/ID/NAME nor employee/PRODUCT/ID/NAME", path)
}

package agent

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"slices"
	"time"

	"sca-probe/pkg/rc"
)

const (
	endpoint    = "/v0.7/config"
	tokenHeader = "X-Datadog-Test-Session-Token"
	// MaxAnswer bounds what the Agent may answer, in bytes.
	MaxAnswer = 64 << 20
	// maxBackoff bounds the time between two attempts to reach an Agent that does not answer.
	maxBackoff = time.Minute
)

// A Source follows the configurations of one product that a Datadog Agent has for this program.
// An Agent that cannot be reached, does not serve Remote Configuration, or answers what makes no
// sense changes nothing: what was desired stays, and the error is told once. Attempts to reach one
// become rarer, up to a minute apart.
//
// The Agent is told what became of each configuration: nothing yet, until somebody has acted on
// it ([rc.Update.Ack]), then that it is applied, or why it is not.
type Source struct {
	config Config
	base   string
	http   *http.Client
}

// NewSource returns a source that follows the Agent. A product, interval or timeout of zero is the
// default.
func NewSource(config Config) (*Source, error) {
	config.Product = cmp.Or(config.Product, DefaultProduct)
	config.PollInterval = cmp.Or(config.PollInterval, DefaultPollInterval)
	config.Timeout = cmp.Or(config.Timeout, DefaultTimeout)
	base, socket, err := config.address()
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		Proxy:              nil, // the Agent is near; the proxy is for what is far
		MaxIdleConns:       1,
		IdleConnTimeout:    2*config.PollInterval + time.Second,
		DisableCompression: true,
	}
	if socket != "" {
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}
	}
	return &Source{config: config, base: base, http: &http.Client{
		Transport: transport,
		Timeout:   config.Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}}, nil
}

// Watch implements [rc.Source]. The first state is that after the first attempt.
func (s *Source) Watch(ctx context.Context) <-chan rc.Update {
	push := rc.NewPush()
	go s.follow(ctx, push)
	return push.Watch(ctx)
}

func (s *Source) follow(ctx context.Context, push *rc.Push) {
	defer s.http.CloseIdleConnections()
	p := poller{Source: s, push: push, id: rand.Text()}
	failures := 0
	for {
		wait := s.config.PollInterval
		err := p.poll(ctx)
		if err != nil && ctx.Err() == nil {
			push.Fail(fmt.Errorf("the Datadog Agent at %s: %w", s.config.URL, err))
		}
		// One that answers is asked again in time, also when the answer was refused.
		if failures++; p.served {
			failures = 0
		} else {
			wait = backoff(wait, failures)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// backoff returns the time to wait after so many failures in a row: twice as long each time, and
// not the same in all processes that lost the same Agent.
func backoff(interval time.Duration, failures int) time.Duration {
	wait := interval << min(failures-1, 16)
	if limit := max(interval, maxBackoff); wait > limit || wait <= 0 {
		wait = limit
	}
	return wait/2 + mathrand.N(wait)
}

// A poller is one client of the Agent.
type poller struct {
	*Source
	push       *rc.Push
	id         string
	repository *repository
	served     bool // the Agent is there and serves Remote Configuration
	paths      []string
}

// poll asks the Agent once, and hands on what it answers.
func (p *poller) poll(ctx context.Context) error {
	if p.repository == nil {
		repository, err := newRepository(p.config.Product)
		if err != nil {
			return err
		}
		p.repository = repository
	}
	if !p.served {
		if err := p.find(ctx); err != nil {
			return err
		}
	}
	answer, err := p.ask(ctx)
	if err != nil {
		p.served = false // it may be another one when it is back
		return err
	}
	if err := p.repository.update(answer); err != nil {
		return err
	}
	return p.hand(p.repository.files())
}

// hand hands the configurations on.
func (p *poller) hand(files map[string][]byte) error {
	var changes []rc.Change
	for _, path := range p.paths {
		if files[path] == nil {
			changes = append(changes, rc.Change{Path: path})
		}
	}
	p.paths = p.paths[:0]
	for path, content := range files {
		if content == nil {
			content = []byte{}
		}
		changes = append(changes, rc.Change{Path: path, Payload: content})
		p.paths = append(p.paths, path)
	}
	return p.push.Push(changes...)
}

var errNotServed = errors.New("it does not serve Remote Configuration: " +
	"that takes an Agent of version 7.39.1 or newer with remote_configuration.enabled")

// find asks the Agent whether it serves Remote Configuration.
func (p *poller) find(ctx context.Context) error {
	var info struct {
		Endpoints []string `json:"endpoints"`
	}
	if err := p.exchange(ctx, http.MethodGet, "/info", nil, &info); err != nil {
		return err
	}
	if p.served = slices.Contains(info.Endpoints, endpoint); !p.served {
		return errNotServed
	}
	return nil
}

// ask says what the client has, and returns what the Agent has to say to that.
func (p *poller) ask(ctx context.Context) (response, error) {
	state, cached, err := p.repository.describe(p.push.States())
	if err != nil {
		return response{}, err
	}
	question, err := json.Marshal(request{
		Client: client{
			ID: p.id, Products: []string{p.config.Product}, State: state,
			IsTracer: true, Tracer: p.config.Tracer, Capabilities: []byte{},
		},
		CachedTargetFiles: cached,
	})
	if err != nil {
		return response{}, err
	}
	var answer response
	err = p.exchange(ctx, http.MethodPost, endpoint, question, &answer)
	return answer, err
}

// exchange makes one request and decodes the answer, which may be empty.
func (p *poller) exchange(ctx context.Context, method, path string, body []byte, into any) error {
	request, err := http.NewRequestWithContext(ctx, method, p.base+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	if p.config.SessionToken != "" {
		request.Header.Set(tokenHeader, p.config.SessionToken)
	}
	answer, err := p.http.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(io.LimitReader(answer.Body, MaxAnswer+1))
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", path, err)
	case len(content) > MaxAnswer:
		return fmt.Errorf("%s: the answer has more than the limit of %d bytes", path, MaxAnswer)
	case answer.StatusCode == http.StatusNotFound:
		return errNotServed
	case answer.StatusCode != http.StatusOK:
		return fmt.Errorf("%s: status %s", path, answer.Status)
	case len(content) == 0:
		return nil
	}
	if err := json.Unmarshal(content, into); err != nil {
		return fmt.Errorf("%s: the answer is not what was expected: %w", path, err)
	}
	return nil
}

package rc

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"sync"
)

// MaxConfigurations bounds the configurations that a source has at one time.
const MaxConfigurations = 100

// A Change is what has become of one configuration.
type Change struct {
	// Path identifies the configuration: a file's path, or the Agent's
	// "datadog/ORG/PRODUCT/ID/NAME".
	Path string
	// Payload is its content; nil when the configuration was withdrawn. An empty payload is a
	// malformed one.
	Payload []byte

	unreadable error // instead of a payload: the configuration is there, and why it cannot be read
}

// A Push is a Source that is handed configurations: by the host process, which gets them from
// ddtrace, or by another source in front of it. The desired set is what all of them ask for
// together, merged in the order of their paths:
//
//   - A configuration that is malformed is refused whole: what it asked for before stays, and so
//     do the others.
//   - One that cannot stand beside those before it (it gives a target another package, or there
//     are more than MaxTargets in all) is left out whole, as long as that is so.
//   - A withdrawn one takes with it what no other asks for.
//
// Its methods may be called at any time, from any goroutine, and never wait for a watcher.
type Push struct {
	mu      sync.Mutex
	configs map[string]*configuration
	set     DesiredSet
	trouble error // of the source itself
	// turn counts what watchers should hear of. 0: nothing is known yet.
	turn    uint64
	next    chan struct{} // closed when turn grows
	acked   uint64        // the turn that was acted on last
	applied error         // what came of that
}

type configuration struct {
	sum     uint64            // contentOf the newest payload; 0 when there is none
	targets []Instrumentation // of the newest payload that was not malformed
	refused error             // why the newest payload is not the one that targets are from
	err     error             // why the newest payload is not in the set; nil if it is
	changed bool              // since the last turn
	turn    uint64            // the first one that it was in as it is
}

// NewPush returns a source that knows of nothing yet: its watchers hear nothing before the first
// call of Push.
func NewPush() *Push {
	return &Push{configs: map[string]*configuration{}, next: make(chan struct{})}
}

// Push makes changes, together: no watcher sees some without the others. Of several changes to
// one path the last one counts. Without changes it says that there is no configuration so far.
// What became of each configuration is in States; the error is for changes that were refused all
// together, since there would be more than MaxConfigurations.
func (p *Push) Push(changes ...Change) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	paths := make(map[string]bool, len(p.configs))
	for path := range p.configs {
		paths[path] = true
	}
	for _, change := range changes {
		if change.withdrawn() {
			delete(paths, change.Path)
		} else {
			paths[change.Path] = true
		}
	}
	if len(paths) > MaxConfigurations {
		err := fmt.Errorf("%d configurations are more than the limit of %d", len(paths), MaxConfigurations)
		p.fail(err)
		return err
	}
	news := p.turn == 0 || p.trouble != nil
	p.trouble = nil
	for _, change := range changes {
		if p.change(change) {
			news = true
		}
	}
	// Each file is looked at again and again: what says nothing new must cost nothing.
	if len(changes) > 0 && p.merge() || news {
		p.tell()
	}
	for _, c := range p.configs {
		if c.changed {
			c.changed, c.turn = false, p.turn
		}
	}
	return nil
}

func (c Change) withdrawn() bool { return c.Payload == nil && c.unreadable == nil }

// change takes what has become of one configuration, and reports whether the error that it leads
// to, or no longer leads to, is news.
func (p *Push) change(change Change) bool {
	c := p.configs[change.Path]
	if change.withdrawn() {
		delete(p.configs, change.Path)
		return c != nil && c.err != nil
	}
	if c == nil {
		c = &configuration{changed: true}
		p.configs[change.Path] = c
	}
	before := c.refused
	if change.unreadable != nil {
		c.refused, c.sum = change.unreadable, 0
		return message(before) != message(c.refused)
	}
	sum := contentOf(change.Payload)
	if sum == c.sum {
		return false
	}
	c.sum, c.changed = sum, true
	targets, err := ParsePayload(change.Payload)
	if c.refused = err; err == nil {
		c.targets = targets
	}
	// Another content that fails in the same way is news.
	return err != nil || before != nil
}

var seed = maphash.MakeSeed()

// contentOf tells a payload from another one. It is no cryptographic hash, for its size: this is
// in every process, and the crypto packages would be too. The seed is secret, so nobody can make
// two payloads alike.
func contentOf(payload []byte) uint64 { return maphash.Bytes(seed, payload) | 1 }

// merge makes the desired set of the configurations, and reports whether it is another one, or
// what stands in the way of one is.
func (p *Push) merge() bool {
	set := newUnion()
	news := false
	for _, path := range slices.Sorted(maps.Keys(p.configs)) {
		c := p.configs[path]
		err := set.addAll(c.targets)
		if c.refused != nil {
			err = c.refused
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", path, err)
		}
		if message(err) != message(c.err) {
			c.changed, news = true, true
		}
		c.err = err
	}
	if !slices.EqualFunc(set.targets, p.set.Targets, Instrumentation.Equal) {
		p.set = DesiredSet{Version: p.set.Version + 1, Targets: set.targets}
		return true
	}
	return news
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// Fail says that the source itself is in trouble: what it had to say last stays. The next Push
// ends that. Watchers hear of it unless they have.
func (p *Push) Fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail(err)
}

func (p *Push) fail(err error) {
	if message(err) == message(p.trouble) {
		return
	}
	p.trouble = err
	p.tell()
}

func (p *Push) tell() {
	p.turn++
	close(p.next)
	p.next = make(chan struct{})
}

// A State is what has become of a configuration. Both fields are zero as long as nobody has acted
// on it.
type State struct {
	// Applied says that whoever acts on the desired set did so since the configuration changed.
	Applied bool
	// Err says why it was refused, or why it could not be acted on.
	Err error
}

// States returns the state of each configuration, by its path.
func (p *Push) States() map[string]State {
	p.mu.Lock()
	defer p.mu.Unlock()
	states := make(map[string]State, len(p.configs))
	for path, c := range p.configs {
		state := State{Err: c.err}
		if c.err == nil && c.turn <= p.acked {
			state.Applied, state.Err = p.applied == nil, p.applied
		}
		states[path] = state
	}
	return states
}

// Watch implements [Source]. A watcher that is slow misses what was overtaken meanwhile.
func (p *Push) Watch(ctx context.Context) <-chan Update {
	updates := make(chan Update)
	go func() {
		defer close(updates)
		p.deliver(ctx, updates)
	}()
	return updates
}

// deliver sends what is to be told, until ctx ends.
func (p *Push) deliver(ctx context.Context, updates chan<- Update) {
	var told uint64
	for {
		turn, update, next := p.latest()
		if turn == told {
			select {
			case <-next:
				continue
			case <-ctx.Done():
				return
			}
		}
		select {
		case updates <- update:
			told = turn
		case <-next:
		case <-ctx.Done():
			return
		}
	}
}

func (p *Push) latest() (uint64, Update, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	errs := []error{p.trouble}
	for _, path := range slices.Sorted(maps.Keys(p.configs)) {
		errs = append(errs, p.configs[path].err)
	}
	turn := p.turn
	return turn, Update{Set: p.set, Err: errors.Join(errs...), ack: func(err error) { p.ack(turn, err) }}, p.next
}

func (p *Push) ack(turn uint64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if turn >= p.acked {
		p.acked, p.applied = turn, err
	}
}

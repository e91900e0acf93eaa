package rc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// pushed is a Push with one watcher.
type pushed struct {
	*watch
	source *Push
}

func startPush(t *testing.T) pushed {
	t.Helper()
	push := NewPush()
	ctx, cancel := context.WithCancel(context.Background())
	w := &watch{t: t, updates: push.Watch(ctx), cancel: cancel}
	t.Cleanup(w.stop)
	return pushed{w, push}
}

func put(path, payload string) Change { return Change{Path: path, Payload: []byte(payload)} }

func (p pushed) push(changes ...Change) {
	p.t.Helper()
	if err := p.source.Push(changes...); err != nil {
		p.t.Fatal(err)
	}
}

// refuses takes the next update, which must say so and have just these targets.
func (p pushed) refuses(says string, targets ...string) Update {
	p.t.Helper()
	update := p.next()
	if update.Err == nil || !strings.Contains(update.Err.Error(), says) {
		p.t.Errorf("error %v does not say %q", update.Err, says)
	}
	if got := names(update); got != strings.Join(targets, " ") {
		p.t.Errorf("got [%s], want %v", got, targets)
	}
	return update
}

// states compares what became of the configurations: "applied", "", or a part of the error.
func (p pushed) states(want map[string]string) {
	p.t.Helper()
	states := p.source.States()
	for path, says := range want {
		state, found := states[path]
		delete(states, path)
		good := found && state.Applied == (says == "applied") && (state.Err != nil) == (says != "applied" && says != "")
		if !good || state.Err != nil && !strings.Contains(state.Err.Error(), says) {
			p.t.Errorf("%s: %+v, want %q", path, state, says)
		}
	}
	if len(states) > 0 {
		p.t.Errorf("and %v", states)
	}
}

func TestPushMergesInTheOrderOfPaths(t *testing.T) {
	p := startPush(t)
	p.push(put("b", payload("x:b", "x:c")), put("a", payload("x:a", "x:c")))
	p.expect("x:a", "x:c", "x:b")
	p.push(put("a", payload("x:a")))
	p.expect("x:a", "x:b", "x:c")
	p.push(Change{Path: "b"}, put("c", objects(`{"target": "x:a", "package": "p", "advisories": ["CVE-1"], "mode": "first_hit"}`)))
	want := []Instrumentation{{Target: Target{"x", "a"}, Mode: Count, Package: "p", Advisories: []string{"CVE-1"}}}
	if diff := cmp.Diff(want, p.expect("x:a").Set.Targets); diff != "" {
		t.Errorf("want, got: %s", diff)
	}
	// One of two that ask for the same goes.
	p.push(Change{Path: "a"})
	want[0].Mode = FirstHit
	if diff := cmp.Diff(want, p.expect("x:a").Set.Targets); diff != "" {
		t.Errorf("want, got: %s", diff)
	}
	p.push(Change{Path: "c"})
	p.expect()
}

// A target that moves from one configuration to another is never without one.
func TestPushIsOneUpdate(t *testing.T) {
	p := startPush(t)
	p.push(put("a", payload("x:x")))
	version := p.expect("x:x").Set.Version
	p.push(Change{Path: "a"}, put("b", payload("x:x")))
	p.push(put("b", payload("x:x", "y:y")))
	if update := p.expect("x:x", "y:y"); update.Set.Version != version+1 {
		t.Errorf("version %d after %d: the move was an update", update.Set.Version, version)
	}
}

func TestPushKnowsNothingAtFirst(t *testing.T) {
	p := startPush(t)
	p.quiet()
	p.push()
	p.expect()
	p.push()
	p.quiet()
}

func TestPushRefusesOneConfiguration(t *testing.T) {
	p := startPush(t)
	p.push(put("a", payload("x:a")), put("b", payload("x:b")))
	p.expect("x:a", "x:b").Ack(nil)
	p.push(put("a", payload("x:c")), put("b", `{"sca`))
	p.refuses("b: malformed", "x:c", "x:b").Ack(nil)
	p.states(map[string]string{"a": "applied", "b": "malformed"})
	p.push(put("b", `{"sca`))
	p.quiet() // one report for one content
	p.push(put("b", `{"scb`))
	p.refuses("b: malformed", "x:c", "x:b")
	p.push(put("b", payload("x:b")))
	p.expect("x:c", "x:b")
	p.states(map[string]string{"a": "applied", "b": ""})
	p.push(put("c", ""))
	p.refuses("c: malformed", "x:c", "x:b")
	p.push(Change{Path: "c"})
	p.expect("x:c", "x:b")
}

func TestPushLeavesOutWhatCannotStandBesideOthers(t *testing.T) {
	p := startPush(t)
	p.push(put("b", objects(`{"target": "x:a", "package": "one"}`, `"x:b"`)))
	p.expect("x:a", "x:b")
	p.push(put("c", objects(`"x:c"`, `{"target": "x:a", "package": "other"}`)))
	p.refuses(`c: x:a is of package "other" here and of "one" elsewhere`, "x:a", "x:b")
	p.push(put("a", payload(numbered(MaxTargets-2)...)))
	if update := p.next(); len(update.Set.Targets) != MaxTargets {
		t.Errorf("%d targets", len(update.Set.Targets))
	}
	p.push(put("a", payload(numbered(MaxTargets-1)...)))
	update := p.next()
	if len(update.Set.Targets) != MaxTargets-1 {
		t.Errorf("%d targets", len(update.Set.Targets))
	}
	p.states(map[string]string{"a": "", "b": "limit of 10000 targets", "c": "limit of 10000 targets"})
	// Each comes back when what stood in its way goes.
	p.push(Change{Path: "a"})
	p.refuses("c: x:a is of package", "x:a", "x:b")
	p.push(Change{Path: "b"})
	p.expect("x:c", "x:a")
}

func TestPushTooManyConfigurations(t *testing.T) {
	p := startPush(t)
	var changes []Change
	for i := range MaxConfigurations {
		changes = append(changes, put(fmt.Sprint(i), payload("x:x")))
	}
	p.push(changes...)
	p.expect("x:x")
	if err := p.source.Push(put("more", payload("y:y"))); err == nil {
		t.Error("one more than the limit was taken")
	}
	p.refuses("101 configurations are more than the limit of 100", "x:x")
	p.push(put("more", payload("y:y")), Change{Path: "0"}) // one for another
	p.expect("x:x", "y:y")
}

func TestPushTrouble(t *testing.T) {
	p := startPush(t)
	p.source.Fail(errors.New("nobody there"))
	p.refuses("nobody there")
	p.source.Fail(errors.New("nobody there"))
	p.quiet()
	p.push(put("a", payload("x:a")))
	p.expect("x:a")
	p.source.Fail(errors.New("gone"))
	p.refuses("gone", "x:a")
	p.push()
	p.expect("x:a")
}

func TestPushAck(t *testing.T) {
	p := startPush(t)
	p.push(put("a", payload("x:a")))
	p.states(map[string]string{"a": ""})
	first := p.expect("x:a")
	p.states(map[string]string{"a": ""}) // taken, not acted on
	first.Ack(nil)
	p.states(map[string]string{"a": "applied"})
	p.push(put("b", payload("x:a")))
	p.states(map[string]string{"a": "applied", "b": "applied"}) // it asks for nothing new
	p.push(put("b", payload("x:b")), put("c", payload("x:c")))
	second := p.expect("x:a", "x:b", "x:c")
	p.states(map[string]string{"a": "applied", "b": "", "c": ""})
	second.Ack(errors.New("CPython 3.99 is unknown"))
	first.Ack(nil) // late
	p.states(map[string]string{"a": "3.99", "b": "3.99", "c": "3.99"})
	p.push(Change{Path: "b"}, put("c", payload("x:b")))
	p.expect("x:a", "x:b").Ack(nil)
	p.states(map[string]string{"a": "applied", "c": "applied"})
	Update{}.Ack(nil) // of a source that nobody is behind
}

// Each watcher gets the latest state, however slow it is, and nobody waits for it.
func TestPushWatchers(t *testing.T) {
	push := NewPush()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	slow := push.Watch(ctx)
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			for range 100 {
				_ = push.Push(put(fmt.Sprint(i), payload(fmt.Sprintf("x:f%d", i))))
				_ = push.Push(put(fmt.Sprint(i), payload()))
				push.States()
			}
		})
	}
	var last Update
	group.Go(func() {
		for update := range push.Watch(ctx) {
			if update.Set.Version < last.Set.Version {
				t.Errorf("version %d after %d", update.Set.Version, last.Set.Version)
			}
			update.Ack(nil)
			if last = update; names(last) == "end:end" {
				return
			}
		}
	})
	group.Go(func() { _ = push.Push(put("end", payload("end:end"))) })
	group.Wait()
	for update := range slow {
		if names(update) == "end:end" {
			break // one that was overtaken may have been on its way
		}
	}
}

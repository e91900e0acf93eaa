package rc

import "context"

// A DesiredSet is everything that Remote Configuration asks for at one time.
type DesiredSet struct {
	Version uint64            // grows with each change of content
	Targets []Instrumentation // each target once, in the order in which they were first named
}

// A Difference is what leads from one desired set to another.
type Difference struct {
	Added   []Instrumentation
	Removed []Instrumentation
	Changed []Instrumentation // as they are to be: the same target with another mode or reason
}

// Diff returns what leads from one set to another, each part in its set's order.
func Diff(from, to DesiredSet) Difference {
	old, kept := byTarget(from.Targets), byTarget(to.Targets)
	var difference Difference
	for _, now := range to.Targets {
		before, found := old[now.Target]
		switch {
		case !found:
			difference.Added = append(difference.Added, now)
		case !now.Equal(before):
			difference.Changed = append(difference.Changed, now)
		}
	}
	for _, before := range from.Targets {
		if _, found := kept[before.Target]; !found {
			difference.Removed = append(difference.Removed, before)
		}
	}
	return difference
}

func byTarget(targets []Instrumentation) map[Target]Instrumentation {
	index := make(map[Target]Instrumentation, len(targets))
	for _, target := range targets {
		index[target.Target] = target
	}
	return index
}

// An Update is a source's state after a change.
type Update struct {
	// Set is what is desired; it is not to be changed. With Err it is what is still desired.
	Set DesiredSet
	// Err says what is wrong with the source, and with each of its configurations that was refused.
	Err error

	ack func(error)
}

// Ack tells the source what became of the set: nil once it was acted on, or why it cannot be. A
// function that a target does not lead to (yet) is no error: it is a target's state, not a
// configuration's. A source that has somebody to tell passes it on.
func (u Update) Ack(err error) {
	if u.ack != nil {
		u.ack(err)
	}
}

// OnAck returns the update, with f called each time after the source has been told by Ack.
func (u Update) OnAck(f func()) Update {
	tell := u.ack
	u.ack = func(err error) {
		if tell != nil {
			tell(err)
		}
		f()
	}
	return u
}

// A Source is where desired sets come from.
type Source interface {
	// Watch yields the state as soon as it is known and after each change, until ctx ends; then
	// it closes the channel.
	Watch(ctx context.Context) <-chan Update
}

package rc

import "context"

// A DesiredSet is everything that Remote Configuration asks for at one time.
type DesiredSet struct {
	Version uint64 // grows with each change of content
	Targets []Target
}

// A Difference is what leads from one desired set to another.
type Difference struct {
	Added, Removed []Target
}

// Diff returns what leads from one set to another, each part in its set's order.
func Diff(from, to DesiredSet) Difference {
	return Difference{Added: missing(to.Targets, from.Targets), Removed: missing(from.Targets, to.Targets)}
}

// missing lists the targets that others lacks.
func missing(targets, others []Target) []Target {
	have := make(map[Target]bool, len(others))
	for _, target := range others {
		have[target] = true
	}
	var result []Target
	for _, target := range targets {
		if !have[target] {
			result = append(result, target)
		}
	}
	return result
}

// An Update is a source's state after a change.
type Update struct {
	// Set is what is desired. With Err it is still the last good set.
	Set DesiredSet
	// Err says why the newest payload was refused.
	Err error
}

// A Source is where desired sets come from.
type Source interface {
	// Watch yields the state at once and after each change, until ctx ends; then it closes the channel.
	Watch(ctx context.Context) <-chan Update
}

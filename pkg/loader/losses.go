package loader

import (
	"fmt"
	"strings"
)

// Losses are what a kernel program came upon and could not tell of. While one is not 0, counts are
// lower bounds and events are not all.
type Losses struct {
	Faults  uint64 // memory of the process that was not there to be read
	Full    uint64 // what the kernel's map had no room for
	Dropped uint64 // events that the kernel's buffer had no room for
	Threads uint64 // threads that ran unwatched for a time
}

// Any reports whether anything was lost.
func (l Losses) Any() bool { return l != Losses{} }

// String says what was lost, as a clause, "" if nothing was.
func (l Losses) String() string {
	var parts []string
	for _, part := range []struct {
		n    uint64
		what string
	}{
		{l.Faults, "could not be read"},
		{l.Full, "had no room in the kernel's map"},
		{l.Dropped, "had no room in the kernel's buffer"},
		{l.Threads, "threads ran unwatched for a time"},
	} {
		if part.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", part.n, part.what))
		}
	}
	return strings.Join(parts, ", ")
}

package bytecode

import "fmt"

// The location table (CPython 3.11+, Objects/locations.md): entries that begin with a byte whose
// top bit is set, then four bits of code, then the number of code units less one; the other bytes
// of an entry have the top bit clear. Numbers are little-endian in groups of six bits, bit 6 set on
// all but the last.
const (
	oneLine       = 10 // the code of an entry on the same line, with two columns
	noColumns     = 13
	longForm      = 14
	noLocation    = 15
	maxEntryUnits = 8
)

// location is one entry of a location table.
type location struct {
	code, units int
	payload     []byte
}

func appendLocation(out []byte, l location) []byte {
	return append(append(out, byte(0x80|l.code<<3|(l.units-1))), l.payload...)
}

// insertLines inserts entries for n units before unit at of a table for so many units. They have no line, as
// what tells of lines is to find the next one begin where it began, unless none does: where the units on both sides are
// of one line, so are they. They have no columns.
func insertLines(table []byte, units, at, n int) ([]byte, error) {
	var out []byte
	unit := 0
	before := location{code: noLocation}
	for rest := table; len(rest) > 0; {
		var entry location
		var err error
		if entry, rest, err = readLocation(rest); err != nil {
			return nil, err
		}
		if first := at - unit; 0 < first && first < entry.units {
			before = location{entry.code, first, entry.payload}
			out = appendLocation(out, before)
			entry = entry.again(entry.units - first)
			unit = at
		}
		if unit == at {
			inserted := location{code: noLocation}
			if before.code != noLocation && entry.onSameLine() {
				inserted = location{code: noColumns, payload: []byte{0}}
			}
			for ; n > 0; n -= inserted.units {
				inserted.units = min(n, maxEntryUnits)
				out = appendLocation(out, inserted)
			}
		}
		out = appendLocation(out, entry)
		unit += entry.units
		before = entry
	}
	if unit != units {
		return nil, fmt.Errorf("%w: the location table covers %d of %d code units", ErrUnknownShape, unit, units)
	}
	return out, nil
}

func readLocation(table []byte) (location, []byte, error) {
	head := table[0]
	if head&0x80 == 0 {
		return location{}, nil, fmt.Errorf("%w: a location entry without a start mark", ErrUnknownShape)
	}
	end, numbers := 1, 0
	for end < len(table) && table[end]&0x80 == 0 {
		if table[end]&0x40 == 0 {
			numbers++
		}
		end++
	}
	entry := location{code: int(head >> 3 & 15), units: int(head&7) + 1, payload: table[1:end]}
	whole := false
	switch {
	case entry.code < oneLine:
		whole = len(entry.payload) == 1
	case entry.code < noColumns:
		whole = len(entry.payload) == 2
	case entry.code == noColumns:
		whole = numbers == 1 && table[end-1]&0x40 == 0
	case entry.code == longForm:
		whole = numbers == 4 && table[end-1]&0x40 == 0
	case entry.code == noLocation:
		whole = len(entry.payload) == 0
	}
	if !whole {
		return location{}, nil, fmt.Errorf("%w: a location entry of code %d with %d bytes", ErrUnknownShape,
			entry.code, len(entry.payload))
	}
	return entry, table[end:], nil
}

// onSameLine reports whether the entry has a line, and that is the one before's.
func (l location) onSameLine() bool {
	switch l.code {
	case noColumns, longForm:
		return l.payload[0] == 0 || l.payload[0] == 1 // the step is 0, or -0
	}
	return l.code <= oneLine
}

// again is the entry for more units at the same place, once the step from the line before is made.
func (l location) again(units int) location {
	switch l.code {
	case oneLine + 1, oneLine + 2: // one line and two lines on
		return location{oneLine, units, l.payload}
	case noColumns, longForm: // the first number is the step
		step := 0
		for l.payload[step]&0x40 != 0 {
			step++
		}
		return location{l.code, units, append([]byte{0}, l.payload[step+1:]...)}
	}
	return location{l.code, units, l.payload}
}

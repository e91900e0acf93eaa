package bytecode

import (
	"fmt"
	"slices"
)

// The location table (CPython 3.11+, Objects/locations.md): entries that begin with a byte whose
// top bit is set, then four bits of code, then the number of code units less one; the other bytes
// of an entry have the top bit clear.
const (
	noLocation    = 15 // the code of an entry that has no line
	maxEntryUnits = 8
)

func entryHead(code, units int) byte { return byte(0x80 | code<<3 | (units - 1)) }

// insertLines inserts entries without location for n units before unit at.
func insertLines(table []byte, at, n int) ([]byte, error) {
	var inserted []byte
	for n > 0 {
		units := min(n, maxEntryUnits)
		inserted = append(inserted, entryHead(noLocation, units))
		n -= units
	}
	unit := 0
	for i := 0; i < len(table); {
		if unit == at {
			return slices.Concat(table[:i], inserted, table[i:]), nil
		}
		if table[i]&0x80 == 0 {
			return nil, fmt.Errorf("%w: a location entry without a head at byte %d", ErrUnknownShape, i)
		}
		end := i + 1
		for end < len(table) && table[end]&0x80 == 0 {
			end++
		}
		code, units := int(table[i]>>3&15), int(table[i]&7)+1
		if unit+units > at {
			return splitEntry(table, i, end, code, at-unit, unit+units-at, inserted)
		}
		unit += units
		i = end
	}
	if unit == at {
		return slices.Concat(table, inserted), nil
	}
	return nil, fmt.Errorf("%w: the location table ends at unit %d", ErrUnknownShape, unit)
}

// splitEntry puts inserted in the middle of an entry of units first + second. The second half
// repeats the columns, but not the step to another line, which the first half has made.
func splitEntry(table []byte, start, end, code, first, second int, inserted []byte) ([]byte, error) {
	head, payload, tail := table[:start], table[start+1:end], table[end:]
	again := []byte{entryHead(code, second)}
	switch {
	case code < 10, code == noLocation: // short forms: columns on the same line; no location
		again = append(again, payload...)
	case code <= 12: // one-line forms: 0 to 2 lines on, then two columns
		again[0] = entryHead(10, second)
		again = append(again, payload...)
	case code == 13: // no columns: a step
		again = append(again, 0)
	case code == 14: // long form: a step, then end line and columns
		step := 0
		for step < len(payload) && payload[step]&0x40 != 0 {
			step++
		}
		if step == len(payload) {
			return nil, fmt.Errorf("%w: a location entry ends within a number", ErrUnknownShape)
		}
		again = append(append(again, 0), payload[step+1:]...)
	}
	return slices.Concat(head, []byte{entryHead(code, first)}, payload, inserted, again, tail), nil
}

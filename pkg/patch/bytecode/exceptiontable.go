package bytecode

import "fmt"

// shiftExceptions moves an exception table (CPython 3.11+, Objects/exception_handling_notes.txt) of
// code of so many units for n units inserted before unit at. The handler of the unit before, RESUME,
// becomes the handler of what is inserted: from 3.12 on, in a generator, that is the one that turns a
// StopIteration into a RuntimeError.
//
// An entry is four numbers: start, length and target in code units, then depth and lasti. A number
// is big-endian in groups of six bits, bit 6 set on all but the last; bit 7 marks an entry's start.
func shiftExceptions(table []byte, units, at, n int) ([]byte, error) {
	var out []byte
	for rest := table; len(rest) > 0; {
		if rest[0]&0x80 == 0 {
			return nil, fmt.Errorf("%w: an exception entry without a start mark", ErrUnknownShape)
		}
		var entry [4]int
		for i := range entry {
			var err error
			if entry[i], rest, err = readNumber(rest, i == 0); err != nil {
				return nil, err
			}
		}
		start, length, target := entry[0], entry[1], entry[2]
		if start+length > units || target >= units {
			return nil, fmt.Errorf("%w: an exception entry beyond the code's end", ErrUnknownShape)
		}
		if target < at {
			return nil, fmt.Errorf("%w: an exception handler before the function's start", ErrUnknownShape)
		}
		switch {
		case start >= at:
			start += n
		case start+length >= at:
			length += n
		}
		from := len(out)
		for _, number := range [4]int{start, length, target + n, entry[3]} {
			out = appendNumber(out, number)
		}
		out[from] |= 0x80
	}
	return out, nil
}

// readNumber reads a number, the first of an entry or another.
func readNumber(data []byte, first bool) (int, []byte, error) {
	value := 0
	for i, b := range data {
		if i == 5 || b&0x80 != 0 && (i > 0 || !first) {
			break
		}
		value = value<<6 | int(b&0x3f)
		if b&0x40 == 0 {
			return value, data[i+1:], nil
		}
	}
	return 0, nil, fmt.Errorf("%w: an exception entry that is cut short", ErrUnknownShape)
}

func appendNumber(out []byte, value int) []byte {
	for shift := 30; shift > 0; shift -= 6 {
		if value>>shift != 0 {
			out = append(out, byte(value>>shift&0x3f)|0x40)
		}
	}
	return append(out, byte(value&0x3f))
}

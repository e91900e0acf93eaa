package bytecode

import "fmt"

// shiftExceptions moves an exception table (CPython 3.11+, Objects/exception_handling_notes.txt)
// for n units inserted before unit at. An entry that spans the place grows by them.
//
// An entry is four numbers: start, length and target in code units, then depth and lasti. A number
// is big-endian in groups of six bits, bit 6 set on all but the last; bit 7 marks an entry's start.
func shiftExceptions(table []byte, at, n int) ([]byte, error) {
	var out []byte
	for rest := table; len(rest) > 0; {
		if rest[0]&0x80 == 0 {
			return nil, fmt.Errorf("%w: an exception entry without a start mark", ErrUnknownShape)
		}
		var entry [4]int
		for i := range entry {
			var err error
			if entry[i], rest, err = readNumber(rest); err != nil {
				return nil, err
			}
		}
		start, length, target := entry[0], entry[1], entry[2]
		if target < at {
			return nil, fmt.Errorf("%w: an exception handler before the function's start", ErrUnknownShape)
		}
		switch {
		case start >= at:
			start += n
		case start+length > at:
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

func readNumber(data []byte) (int, []byte, error) {
	value := 0
	for i, b := range data {
		if i == 5 {
			break
		}
		value = value<<6 | int(b&0x3f)
		if b&0x40 == 0 {
			return value, data[i+1:], nil
		}
	}
	return 0, nil, fmt.Errorf("%w: an exception table that ends within a number", ErrUnknownShape)
}

func appendNumber(out []byte, value int) []byte {
	for shift := 30; shift > 0; shift -= 6 {
		if value>>shift != 0 {
			out = append(out, byte(value>>shift&0x3f)|0x40)
		}
	}
	return append(out, byte(value&0x3f))
}

package bytecode

import "fmt"

// noLine, as the step of an entry of CPython 3.10's line table, says that its bytes have no line.
const noLine = -128

// moveLnotab moves a co_lnotab (CPython 3.8 and 3.9, Objects/lnotab_notes.txt): pairs of a step in
// bytes of code, unsigned, and a step in lines, signed. A line begins where the first step is made.
//
// The table has no way to say that code has no line. The prologue, at offset 0, is of the line that
// begins there: the line event of the function's start is its first instruction's. The instruction
// that was first has no line begin at it any more, and needs none: it can be come to again by a jump back
// alone, and a jump back is always a line event (Python/ceval.c, maybe_call_line_trace).
func moveLnotab(table []byte, r *relocation) ([]byte, error) {
	if len(table)%2 != 0 {
		return nil, fmt.Errorf("%w: a line table of %d bytes", ErrUnknownShape, len(table))
	}
	out := make([]byte, 0, len(table)+2)
	was, now := 0, 0
	for ; len(table) > 0; table = table[2:] {
		was += int(table[0])
		if table[1] == 0 { // a step in bytes of more than 255 is made in several
			continue
		}
		if was%2 != 0 && was < 2*int(r.units) {
			return nil, fmt.Errorf("%w: a line that begins at byte %d", ErrUnknownShape, was)
		}
		step := -now
		if was > 0 {
			now = r.moved(was)
			step += now
		}
		for ; step > 255; step -= 255 {
			out = append(out, 255, 0)
		}
		out = append(out, byte(step), table[1])
	}
	return out, nil
}

// moveLines moves a co_linetable of CPython 3.10 (Objects/lnotab_notes.txt there): pairs of a number
// of bytes of code, unsigned and even, and the step to their line from the line before, signed, or noLine.
//
// The prologue at offset 0 has no line. After GEN_START, to which the compiler gives no line either,
// it is of the same entry.
func moveLines(table []byte, r *relocation) ([]byte, error) {
	if len(table)%2 != 0 {
		return nil, fmt.Errorf("%w: a line table of %d bytes", ErrUnknownShape, len(table))
	}
	out := make([]byte, 0, len(table)+4)
	entry := func(size int, step byte) {
		for size > 254 {
			out = append(out, 254, step)
			size -= 254
			if int8(step) != noLine {
				step = 0
			}
		}
		out = append(out, byte(size), step)
	}
	was, now := 0, 0
	if r.at == 0 {
		now = 2 * int(r.room)
		noLine := noLine
		entry(now, byte(noLine))
	}
	for ; len(table) > 0; table = table[2:] {
		was += int(table[0])
		if was%2 != 0 || was > 2*int(r.units) {
			return nil, fmt.Errorf("%w: a line that ends at byte %d of %d", ErrUnknownShape, was, 2*r.units)
		}
		end := 0
		if was > 0 || r.at == 0 {
			end = r.moved(was)
		}
		entry(end-now, table[1])
		now = end
	}
	if n := len(out); was != 2*int(r.units) || out[n-2] == 0 {
		return nil, fmt.Errorf("%w: the line table covers %d of %d bytes", ErrUnknownShape, was, 2*r.units)
	}
	return out, nil
}

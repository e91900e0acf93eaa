package bytecode

import (
	"bytes"
	"errors"
	"slices"
	"testing"
)

// head is the first byte of an entry.
func head(code, units int) byte { return appendLocation(nil, location{code: code, units: units})[0] }

func TestInsertLines(t *testing.T) {
	none := []byte{head(15, 8), head(15, 3)}       // 11 units without location
	same := []byte{head(13, 8), 0, head(13, 3), 0} // and 11 of the line before, without columns
	tests := []struct {
		name      string
		table     []byte
		units, at int
		head      []byte
		inserted  []byte
		tail      []byte
	}{
		{"between entries", []byte{head(14, 1), 2, 0, 1, 1, head(3, 2), 7}, 3, 1,
			[]byte{head(14, 1), 2, 0, 1, 1}, same, []byte{head(3, 2), 7}},
		{"where a line begins", []byte{head(14, 1), 2, 0, 1, 1, head(11, 2), 7, 7}, 3, 1,
			[]byte{head(14, 1), 2, 0, 1, 1}, none, []byte{head(11, 2), 7, 7}},
		{"where a line begins again", []byte{head(13, 1), 1, head(15, 1), head(13, 1), 0}, 3, 2,
			[]byte{head(13, 1), 1, head(15, 1)}, none, []byte{head(13, 1), 0}},
		{"where a long entry steps on", []byte{head(13, 1), 1, head(14, 1), 2, 0, 1, 1}, 2, 1,
			[]byte{head(13, 1), 1}, none, []byte{head(14, 1), 2, 0, 1, 1}},
		{"before no location", []byte{head(13, 1), 1, head(15, 1)}, 2, 1, []byte{head(13, 1), 1}, none, []byte{head(15, 1)}},
		{"in a short entry", []byte{head(9, 8), 7}, 8, 1, []byte{head(9, 1), 7}, same, []byte{head(9, 7), 7}},
		{"in an entry on the same line", []byte{head(10, 3), 1, 2}, 3, 2, []byte{head(10, 2), 1, 2}, same, []byte{head(10, 1), 1, 2}},
		{"in an entry one line on", []byte{head(11, 3), 1, 2}, 3, 1, []byte{head(11, 1), 1, 2}, same, []byte{head(10, 2), 1, 2}},
		{"in an entry two lines on", []byte{head(12, 3), 1, 2}, 3, 1, []byte{head(12, 1), 1, 2}, same, []byte{head(10, 2), 1, 2}},
		{"in an entry without columns", []byte{head(13, 5), 66, 1}, 5, 4, []byte{head(13, 4), 66, 1}, same, []byte{head(13, 1), 0}},
		{"in a long entry", []byte{head(14, 5), 66, 1, 67, 3, 5, 6}, 5, 1,
			[]byte{head(14, 1), 66, 1, 67, 3, 5, 6}, same, []byte{head(14, 4), 0, 67, 3, 5, 6}},
		{"in an entry without location", []byte{head(15, 4)}, 4, 1, []byte{head(15, 1)}, none, []byte{head(15, 3)}},
		{"in the second entry", []byte{head(0, 2), 1, head(11, 2), 3, 4, head(15, 1)}, 5, 3,
			[]byte{head(0, 2), 1, head(11, 1), 3, 4}, same, []byte{head(10, 1), 3, 4, head(15, 1)}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := insertLines(test.table, test.units, test.at, 11)
			if want := bytes.Join([][]byte{test.head, test.inserted, test.tail}, nil); err != nil || !bytes.Equal(got, want) {
				t.Errorf("got %v and %v\nwant %v", got, err, want)
			}
		})
	}
}

func TestMalformedLines(t *testing.T) {
	tests := map[string][]byte{
		"nothing":                                    {},
		"no start mark":                              {5, head(15, 3)},
		"fewer units than the code has":              {head(15, 2)},
		"more units than the code has":               {head(15, 4)},
		"a short entry cut short":                    {head(3, 3)},
		"a short entry too long":                     {head(3, 3), 1, 2},
		"columns cut short":                          {head(11, 3), 1},
		"a step cut short":                           {head(13, 3), 66},
		"no step":                                    {head(13, 3)},
		"a long entry cut short":                     {head(14, 3), 1, 1, 1},
		"a long entry with half a number at its end": {head(14, 3), 1, 1, 1, 1, 66},
		"a column without location":                  {head(15, 3), 1},
	}
	for name, table := range tests {
		t.Run(name, func(t *testing.T) {
			if got, err := insertLines(table, 3, 1, 8); !errors.Is(err, ErrUnknownShape) {
				t.Errorf("got %v and %v, want ErrUnknownShape", got, err)
			}
		})
	}
}

// place is where one code unit belongs to, as Objects/locations.md has it; -1 is for what it does not say.
type place struct{ line, endLine, column, endColumn int }

var nowhere = place{-1, -1, -1, -1}

// places reads a whole location table that is well formed, unit by unit.
func places(table []byte) (units []place) {
	line := 0
	number := func() (n int) {
		for shift := 0; ; shift += 6 {
			b := table[0]
			table = table[1:]
			n |= int(b&63) << shift
			if b&64 == 0 {
				return n
			}
		}
	}
	signed := func() int {
		n := number()
		if n&1 != 0 {
			return -(n >> 1)
		}
		return n >> 1
	}
	for len(table) > 0 {
		code, length := table[0]>>3&15, int(table[0]&7)+1
		table = table[1:]
		at := nowhere
		switch {
		case code < 10:
			at = place{line, line, int(code)<<3 | int(table[0]>>4), int(code)<<3 + int(table[0]>>4) + int(table[0]&15)}
			table = table[1:]
		case code < 13:
			line += int(code) - 10
			at = place{line, line, int(table[0]), int(table[1])}
			table = table[2:]
		case code == 13:
			line += signed()
			at = place{line, line, -1, -1}
		case code == 14:
			line += signed()
			at = place{line, line + number(), number() - 1, number() - 1}
		}
		for range length {
			units = append(units, at)
		}
	}
	return units
}

// FuzzInsertLines compares what an interpreter reads in a location table before and after: each unit is where it was,
// and what was inserted is nowhere, or on the line of the units on both sides.
func FuzzInsertLines(f *testing.F) {
	f.Add([]byte{head(14, 1), 2, 0, 1, 1, head(3, 2), 7}, byte(1), byte(4))
	f.Add([]byte{head(0, 2), 1, head(12, 2), 3, 4, head(15, 1)}, byte(3), byte(11))
	f.Add([]byte{head(13, 5), 66, 1, head(11, 8), 9, 9}, byte(4), byte(8))
	f.Add([]byte{head(11, 8), 9, 9, head(10, 1), 3, 3}, byte(1), byte(3))
	f.Fuzz(func(t *testing.T, table []byte, at, n byte) {
		kept := bytes.Clone(table)
		units := 0
		for _, b := range table {
			if b&0x80 != 0 {
				units += int(b&7) + 1
			}
		}
		if int(at) >= units || n == 0 {
			return
		}
		got, err := insertLines(table, units, int(at), int(n))
		if refused(t, table, kept, err) {
			return
		}
		want, inserted := places(table), nowhere
		if at > 0 && want[at-1].line == want[at].line && want[at] != nowhere {
			inserted = place{want[at].line, want[at].line, -1, -1}
		}
		want = slices.Insert(want, int(at), slices.Repeat([]place{inserted}, int(n))...)
		if found := places(got); !slices.Equal(found, want) {
			t.Errorf("%v became %v, which reads\n%v, want\n%v", table, got, found, want)
		}
	})
}

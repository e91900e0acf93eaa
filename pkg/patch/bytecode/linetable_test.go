package bytecode

import (
	"bytes"
	"errors"
	"testing"
)

// head is the first byte of an entry.
func head(code, units int) byte { return appendLocation(nil, location{code: code, units: units})[0] }

func TestInsertLines(t *testing.T) {
	none := []byte{head(15, 8), head(15, 3)} // what 11 units without location are
	tests := []struct {
		name       string
		table      []byte
		units, at  int
		head, tail []byte // on either side of none
	}{
		{"between entries", []byte{head(14, 1), 2, 0, 1, 1, head(3, 2), 7}, 3, 1,
			[]byte{head(14, 1), 2, 0, 1, 1}, []byte{head(3, 2), 7}},
		{"in a short entry", []byte{head(9, 8), 7}, 8, 1, []byte{head(9, 1), 7}, []byte{head(9, 7), 7}},
		{"in an entry on the same line", []byte{head(10, 3), 1, 2}, 3, 2, []byte{head(10, 2), 1, 2}, []byte{head(10, 1), 1, 2}},
		{"in an entry one line on", []byte{head(11, 3), 1, 2}, 3, 1, []byte{head(11, 1), 1, 2}, []byte{head(10, 2), 1, 2}},
		{"in an entry two lines on", []byte{head(12, 3), 1, 2}, 3, 1, []byte{head(12, 1), 1, 2}, []byte{head(10, 2), 1, 2}},
		{"in an entry without columns", []byte{head(13, 5), 66, 1}, 5, 4, []byte{head(13, 4), 66, 1}, []byte{head(13, 1), 0}},
		{"in a long entry", []byte{head(14, 5), 66, 1, 67, 3, 5, 6}, 5, 1,
			[]byte{head(14, 1), 66, 1, 67, 3, 5, 6}, []byte{head(14, 4), 0, 67, 3, 5, 6}},
		{"in an entry without location", []byte{head(15, 4)}, 4, 1, []byte{head(15, 1)}, []byte{head(15, 3)}},
		{"in the second entry", []byte{head(0, 2), 1, head(11, 2), 3, 4, head(15, 1)}, 5, 3,
			[]byte{head(0, 2), 1, head(11, 1), 3, 4}, []byte{head(10, 1), 3, 4, head(15, 1)}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := insertLines(test.table, test.units, test.at, 11)
			if want := bytes.Join([][]byte{test.head, none, test.tail}, nil); err != nil || !bytes.Equal(got, want) {
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

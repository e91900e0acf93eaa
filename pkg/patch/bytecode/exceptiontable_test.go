package bytecode

import (
	"bytes"
	"errors"
	"slices"
	"testing"
)

// exceptions encodes a table of entries: start, length, target, depth and lasti.
func exceptions(entries ...[4]int) []byte {
	var table []byte
	for _, entry := range entries {
		from := len(table)
		for _, number := range entry {
			table = appendNumber(table, number)
		}
		table[from] |= 0x80
	}
	return table
}

func TestNumbers(t *testing.T) {
	// Objects/exception_handling_notes.txt: big-endian, six bits a byte.
	for value, want := range map[int][]byte{0: {0}, 63: {63}, 64: {65, 0}, 4095: {127, 63}, 4096: {65, 64, 0},
		1<<30 - 1: {127, 127, 127, 127, 63}} {
		encoded := appendNumber(nil, value)
		if !bytes.Equal(encoded, want) {
			t.Errorf("%d is %v, want %v", value, encoded, want)
		}
		if got, rest, err := readNumber(encoded, true); got != value || len(rest) != 0 || err != nil {
			t.Errorf("%v is %d, %v and %v, want %d", encoded, got, rest, err, value)
		}
	}
}

func TestShiftExceptions(t *testing.T) {
	tests := []struct {
		name     string
		in, want [4]int
	}{
		{"after the prologue", [4]int{5, 3, 20, 1}, [4]int{13, 3, 28, 1}},
		{"right after RESUME", [4]int{4, 3, 20, 2}, [4]int{12, 3, 28, 2}},
		{"across the prologue", [4]int{3, 10, 13, 1}, [4]int{3, 18, 21, 1}},
		{"up to RESUME", [4]int{2, 2, 20, 1}, [4]int{2, 10, 28, 1}},
		{"before RESUME", [4]int{0, 3, 20, 1}, [4]int{0, 3, 28, 1}},
		{"a handler right after RESUME", [4]int{6, 1, 4, 7}, [4]int{14, 1, 12, 7}},
		{"numbers that grow by a byte", [4]int{60, 60, 63, 65}, [4]int{68, 60, 71, 65}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			other := [4]int{7, 1, 30, 0}
			got, err := shiftExceptions(exceptions(test.in, other), 200, 4, 8)
			if want := exceptions(test.want, [4]int{15, 1, 38, 0}); err != nil || !bytes.Equal(got, want) {
				t.Errorf("got %v and %v\nwant %v", got, err, want)
			}
		})
	}
}

func TestMalformedExceptions(t *testing.T) {
	tests := map[string][]byte{
		"no start mark":                     {5, 1, 9, 0},
		"an entry of three numbers":         {0x85, 1, 9},
		"a start mark within an entry":      {0x85, 1, 0x89, 0},
		"a start mark within the start":     {0xc1, 0x81, 1, 9, 0},
		"a number cut short":                {0x85, 1, 9, 0x40},
		"a number of six bytes":             {0x85, 1, 9, 0x40, 0x40, 0x40, 0x40, 0x40, 0},
		"a range beyond the code":           exceptions([4]int{8, 3, 9, 0}),
		"a handler beyond the code":         exceptions([4]int{5, 1, 10, 0}),
		"a handler before the prologue":     exceptions([4]int{5, 1, 3, 0}),
		"a whole entry and a piece of next": append(exceptions([4]int{5, 1, 9, 0}), 0x85),
	}
	for name, table := range tests {
		t.Run(name, func(t *testing.T) {
			if got, err := shiftExceptions(table, 10, 4, 8); !errors.Is(err, ErrUnknownShape) {
				t.Errorf("got %v and %v, want ErrUnknownShape", got, err)
			}
		})
	}
}

// handler is what handles an exception in one code unit: none has target -1.
type handler struct{ target, depthAndLasti int }

// handlers reads a whole exception table that is well formed, unit by unit, as Objects/exception_handling_notes.txt has it: the
// first entry that a unit is in counts.
func handlers(table []byte, units int) []handler {
	found := slices.Repeat([]handler{{-1, 0}}, units)
	number := func() (n int) {
		for {
			b := table[0]
			table = table[1:]
			n = n<<6 | int(b&63)
			if b&64 == 0 {
				return n
			}
		}
	}
	for len(table) > 0 {
		start, length, is := number(), number(), handler{number(), number()}
		for unit := start; unit < start+length; unit++ {
			if found[unit].target < 0 {
				found[unit] = is
			}
		}
	}
	return found
}

// refused reports whether a table was refused, as it may be: for its shape. It must be as it was kept.
func refused(t *testing.T, table, kept []byte, err error) bool {
	t.Helper()
	if !bytes.Equal(table, kept) {
		t.Error("the input was written to")
	}
	if err != nil && !errors.Is(err, ErrUnknownShape) {
		t.Errorf("%v is not ErrUnknownShape", err)
	}
	return err != nil
}

// FuzzShiftExceptions compares what an interpreter reads in an exception table before and after: each unit has the handler that it
// had, where that is now, and what was inserted has that of the unit before.
func FuzzShiftExceptions(f *testing.F) {
	f.Add(exceptions([4]int{4, 3, 20, 2}, [4]int{7, 1, 30, 0}), byte(40), byte(4), byte(8))
	f.Add(exceptions([4]int{0, 200, 63, 65}), byte(201), byte(60), byte(3))
	f.Add(exceptions([4]int{2, 2, 20, 1}), byte(40), byte(4), byte(3))
	f.Add(exceptions([4]int{3, 10, 13, 1}, [4]int{2, 20, 13, 3}), byte(40), byte(4), byte(5))
	f.Fuzz(func(t *testing.T, table []byte, units, at, n byte) {
		if at == 0 || at >= units {
			return // it is RESUME that stands before
		}
		kept := bytes.Clone(table)
		got, err := shiftExceptions(table, int(units), int(at), int(n))
		if refused(t, table, kept, err) {
			return
		}
		want := handlers(table, int(units))
		for i := range want {
			if want[i].target >= 0 {
				want[i].target += int(n)
			}
		}
		want = slices.Insert(want, int(at), slices.Repeat(want[at-1:at], int(n))...)
		if found := handlers(got, int(units)+int(n)); !slices.Equal(found, want) {
			t.Errorf("%v became %v, which reads\n%v, want\n%v", table, got, found, want)
		}
	})
}

package bytecode

import (
	"bytes"
	"slices"
	"testing"
)

// Opcodes of CPython 3.8 to 3.10.
const (
	popTop       = 1
	nop          = 9
	returnValue  = 83
	forIter      = 93
	jumpForward  = 110
	jumpAbsolute = 113
	loadFast     = 124
	genStart     = 129
	extendedArg  = 144
)

// prologue38 negates the constant 1.
var prologue38 = []byte{100, 1, 11, 0, popTop, 0}

func nops(n int) []byte { return bytes.Repeat([]byte{nop, 0}, n) }

// relocate38 is the rewritten bytecode of a function that has one constant.
func relocate38(t *testing.T, v Version, code []byte) []byte {
	t.Helper()
	var table []byte
	for n := len(code); n > 0 && v.Minor == 10; n -= 254 {
		table = append(table, byte(min(n, 254)), 0)
	}
	got, err := InsertPrologue(v, Code{Bytecode: code, NumConsts: 1, LineTable: table})
	if err != nil {
		t.Fatal(err)
	}
	return got.Bytecode
}

func TestRelocate(t *testing.T) {
	tests := []struct {
		name       string
		minors     []int
		code, want []byte
	}{
		{"a plain function", []int{8, 9, 10}, []byte{loadFast, 0, returnValue, 0},
			slices.Concat(prologue38, []byte{loadFast, 0, returnValue, 0})},
		{"a jump to the first instruction, in bytes", []int{8, 9}, []byte{nop, 0, jumpAbsolute, 0},
			slices.Concat(prologue38, []byte{nop, 0, jumpAbsolute, 6})},
		{"a jump to the first instruction, in units", []int{10}, []byte{nop, 0, jumpAbsolute, 0},
			slices.Concat(prologue38, []byte{nop, 0, jumpAbsolute, 3})},
		{"a generator", []int{10}, []byte{genStart, 0, nop, 0, jumpAbsolute, 1},
			slices.Concat([]byte{genStart, 0}, prologue38, []byte{nop, 0, jumpAbsolute, 4})},
		{"a relative jump stays", []int{8, 9}, []byte{jumpForward, 2, nop, 0, returnValue, 0},
			slices.Concat(prologue38, []byte{jumpForward, 2, nop, 0, returnValue, 0})},
		{"a target that needs EXTENDED_ARG now, in bytes", []int{8, 9},
			slices.Concat(nops(125), []byte{jumpAbsolute, 250}),
			slices.Concat(prologue38, nops(125), []byte{extendedArg, 1, jumpAbsolute, 0})},
		{"a target that needs EXTENDED_ARG now, in units", []int{10},
			slices.Concat(nops(253), []byte{jumpAbsolute, 253}),
			slices.Concat(prologue38, nops(253), []byte{extendedArg, 1, jumpAbsolute, 0})},
		{"a target that just fits", []int{8, 9}, slices.Concat(nops(124), []byte{jumpAbsolute, 248}),
			slices.Concat(prologue38, nops(124), []byte{jumpAbsolute, 254})},
		// The loop's end is 254 bytes from FOR_ITER, 256 with the EXTENDED_ARG of the jump within: that takes one
		// for FOR_ITER too, which moves the jump's own target.
		{"growth that makes another jump grow", []int{8, 9},
			slices.Concat([]byte{forIter, 254}, nops(126), []byte{jumpAbsolute, 252, returnValue, 0}),
			slices.Concat(prologue38, []byte{extendedArg, 1, forIter, 0}, nops(126),
				[]byte{extendedArg, 1, jumpAbsolute, 4, returnValue, 0})},
		{"EXTENDED_ARGs that are more than enough", []int{8, 9},
			[]byte{extendedArg, 0, extendedArg, 0, jumpAbsolute, 0},
			slices.Concat(prologue38, []byte{extendedArg, 0, extendedArg, 0, jumpAbsolute, 6})},
		{"65,536 bytes", []int{8, 9},
			slices.Concat(nops(32766), []byte{extendedArg, 255, jumpAbsolute, 252}),
			slices.Concat(prologue38, nops(32766), []byte{extendedArg, 1, extendedArg, 0, jumpAbsolute, 2})},
	}
	for _, test := range tests {
		for _, minor := range test.minors {
			t.Run(test.name, func(t *testing.T) {
				if got := relocate38(t, Version{3, minor}, test.code); !bytes.Equal(got, test.want) {
					t.Errorf("got  %v\nwant %v", got, test.want)
				}
			})
		}
	}
}

package bytecode

import (
	"bytes"
	"errors"
	"slices"
	"testing"
)

func TestMoveLnotab(t *testing.T) {
	// The jump gets an EXTENDED_ARG, so that what is after it moves by 8 bytes, all else by 6.
	code := slices.Concat(nops(125), []byte{jumpAbsolute, 250, returnValue, 0})
	tests := []struct {
		name        string
		table, want []byte
	}{
		{"nothing", nil, nil},
		{"a first line", []byte{0, 1}, []byte{0, 1}},
		{"the prologue is of the first line", []byte{0, 1, 4, 2}, []byte{0, 1, 10, 2}},
		{"and of the function's own", []byte{4, 2}, []byte{10, 2}},
		{"lines back, and far on", []byte{4, 0x80, 0, 0xff, 4, 127, 0, 127}, []byte{10, 0x80, 0, 0xff, 4, 127, 0, 127}},
		{"a step of 255 and more", []byte{252, 1}, []byte{255, 0, 5, 1}},
		{"a step of 252 and more", []byte{248, 1}, []byte{254, 1}},
		{"a step in parts", []byte{200, 0, 51, 0, 1, 3}, []byte{255, 0, 5, 3}},
		{"beyond the code's end", []byte{254, 1, 3, 1}, []byte{255, 0, 7, 1, 3, 1}},
		{"a step that no line follows", []byte{2, 1, 8, 0}, []byte{8, 1}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, v := range []Version{{3, 8}, {3, 9}} {
				got, err := InsertPrologue(v, Code{Bytecode: code, NumConsts: 1, LineTable: test.table})
				if err != nil || !bytes.Equal(got.LineTable, test.want) {
					t.Errorf("%s: got %v and %v\nwant %v", v, got.LineTable, err, test.want)
				}
			}
		})
	}
}

func TestMoveLines(t *testing.T) {
	plain := slices.Concat(nops(253), []byte{jumpAbsolute, 253, returnValue, 0}) // 510 bytes, the last two moved by 8
	generator := []byte{genStart, 0, nop, 0, returnValue, 0}
	tests := []struct {
		name        string
		code        []byte
		table, want []byte
	}{
		{"one line", []byte{nop, 0, returnValue, 0}, []byte{4, 1}, []byte{6, 0x80, 4, 1}},
		{"no line", []byte{nop, 0, returnValue, 0}, []byte{4, 0x80}, []byte{6, 0x80, 4, 0x80}},
		{"a first line far on", []byte{nop, 0, returnValue, 0}, []byte{0, 127, 4, 127}, []byte{6, 0x80, 0, 127, 4, 127}},
		{"an entry that outgrows its byte", plain, []byte{254, 1, 252, 2, 4, 3}, []byte{6, 0x80, 254, 1, 252, 2, 6, 3}},
		{"an entry that does so with its line", plain, []byte{254, 1, 254, 2, 2, 3}, []byte{6, 0x80, 254, 1, 254, 2, 2, 0, 2, 3}},
		{"an entry that does so without", plain, []byte{254, 1, 254, 0x80, 2, 3}, []byte{6, 0x80, 254, 1, 254, 0x80, 2, 0x80, 2, 3}},
		{"a generator", generator, []byte{2, 0x80, 2, 1, 2, 1}, []byte{8, 0x80, 2, 1, 2, 1}},
		{"a generator whose first line is far on", generator, []byte{2, 0x80, 0, 127, 4, 1}, []byte{8, 0x80, 0, 127, 4, 1}},
		{"a generator without lines", generator, []byte{6, 0x80}, []byte{12, 0x80}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := InsertPrologue(Version{3, 10}, Code{Bytecode: test.code, NumConsts: 1, LineTable: test.table})
			if err != nil || !bytes.Equal(got.LineTable, test.want) {
				t.Errorf("got %v and %v\nwant %v", got.LineTable, err, test.want)
			}
		})
	}
}

func TestMalformedLineTables(t *testing.T) {
	code := []byte{nop, 0, nop, 0, returnValue, 0}
	tests := []struct {
		name  string
		minor int
		table []byte
	}{
		{"half an entry", 8, []byte{2}},
		{"a line within a code unit", 9, []byte{3, 1}},
		{"half an entry in 3.10", 10, []byte{6, 1, 0}},
		{"nothing in 3.10", 10, nil},
		{"less than the code", 10, []byte{4, 1}},
		{"more than the code", 10, []byte{8, 1}},
		{"a line of half a code unit", 10, []byte{3, 1, 3, 1}},
		{"a line of no code at the end", 10, []byte{6, 1, 0, 1}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := InsertPrologue(Version{3, test.minor}, Code{Bytecode: code, LineTable: test.table})
			if !errors.Is(err, ErrUnknownShape) {
				t.Errorf("got %v and %v, want ErrUnknownShape", got, err)
			}
		})
	}
}

// lineAt is the line of a byte of code, counted from co_firstlineno, as Objects/codeobject.c looks it up: PyCode_Addr2Line in 3.8
// and 3.9, PyLineTable_NextAddressRange in 3.10, where noLine is for none.
func lineAt(minor int, table []byte, address int) int {
	line, at := 0, 0
	for ; len(table) > 0; table = table[2:] {
		if minor < 10 {
			if at += int(table[0]); at > address {
				break
			}
			line += int(int8(table[1]))
			continue
		}
		step := int(int8(table[1]))
		if step != noLine {
			line += step
		}
		if at += int(table[0]); at > address {
			if step == noLine {
				return noLine
			}
			break
		}
	}
	return line
}

// FuzzMoveLines compares what an interpreter reads in a line table before CPython 3.11 before and after: each instruction is of
// the line that it was of.
func FuzzMoveLines(f *testing.F) {
	loop := slices.Concat([]byte{forIter, 254}, nops(126), []byte{jumpAbsolute, 252, returnValue, 0})
	codes := [][]byte{
		{nop, 0, nop, 0, returnValue, 0},
		{genStart, 0, nop, 0, returnValue, 0},
		loop,
		slices.Concat(nops(253), []byte{jumpAbsolute, 253, returnValue, 0}),
	}
	f.Add(byte(8), byte(2), []byte{0, 1, 254, 0, 1, 0, 1, 2})
	f.Add(byte(9), byte(2), []byte{4, 1, 250, 0x80, 0, 0xff})
	f.Add(byte(10), byte(1), []byte{2, 0x80, 0, 127, 4, 1})
	f.Add(byte(10), byte(3), []byte{254, 1, 254, 0x80, 2, 3})
	f.Fuzz(func(t *testing.T, minor, which byte, table []byte) {
		v, code := Version{3, 8 + int(minor)%3}, codes[int(which)%len(codes)]
		if v.Minor < 10 && which%2 == 1 {
			return // code of 3.10
		}
		kept := bytes.Clone(table)
		out, err := InsertPrologue(v, Code{Bytecode: code, NumConsts: 1, LineTable: table})
		if refused(t, table, kept, err) {
			return
		}
		was, err := versions[v].decode(code)
		if err != nil {
			t.Skip(err)
		}
		now, err := versions[v].decode(out.Bytecode)
		if err != nil {
			t.Fatal(err)
		}
		first := 0 // how many instructions come before the prologue
		if was[0].opcode == genStart {
			first = 1
		}
		for i, in := range now {
			want := noLine
			switch {
			case i >= first+3:
				want = lineAt(v.Minor, table, 2*int(was[i-3].start))
			case v.Minor < 10 || first == 1: // the prologue, of the first instruction's line
				want = lineAt(v.Minor, table, 0)
			}
			if got := lineAt(v.Minor, out.LineTable, 2*int(in.start)); got != want {
				t.Errorf("%s: %v became %v: instruction %d is of line %d, want %d", v, table, out.LineTable, i, got, want)
			}
		}
	})
}

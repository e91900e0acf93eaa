package bytecode

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
)

func cloneCode(c Code) Code {
	c.Bytecode, c.LineTable, c.ExceptionTable = bytes.Clone(c.Bytecode), bytes.Clone(c.LineTable), bytes.Clone(c.ExceptionTable)
	return c
}

func equalCode(a, b Code) bool {
	return bytes.Equal(a.Bytecode, b.Bytecode) && bytes.Equal(a.LineTable, b.LineTable) &&
		bytes.Equal(a.ExceptionTable, b.ExceptionTable) && a.NumConsts == b.NumConsts && a.StackSize == b.StackSize
}

// locations is a location table without any location for all of the bytecode.
func locations(bytecode []byte) []byte {
	table, err := insertLines([]byte{0x80 | noLocation<<3}, 1, 0, len(bytecode)/2-1)
	if err != nil {
		panic(err)
	}
	return table
}

// TestPrologue spells out, byte for byte, what is inserted into a function that returns its argument.
func TestPrologue(t *testing.T) {
	tests := []struct {
		name     string
		version  Version
		consts   int
		before   []byte // up to and with RESUME
		prologue []byte
		after    []byte
	}{
		{"3.11", Version{3, 11}, 1, []byte{151, 0}, []byte{2, 0, 100, 1, 100, 1, 166, 1, 0, 0, 171, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0},
			[]byte{124, 0, 83, 0}},
		{"3.12", Version{3, 12}, 2, []byte{151, 0}, []byte{2, 0, 100, 2, 100, 2, 171, 1, 0, 0, 0, 0, 0, 0, 1, 0},
			[]byte{124, 0, 83, 0}},
		{"3.13", Version{3, 13}, 255, []byte{149, 0}, []byte{83, 255, 34, 0, 83, 255, 53, 1, 0, 0, 0, 0, 0, 0, 32, 0},
			[]byte{85, 0, 36, 0}},
		{"3.14", Version{3, 14}, 0, []byte{128, 0}, []byte{82, 0, 33, 0, 82, 0, 52, 1, 0, 0, 0, 0, 0, 0, 31, 0},
			[]byte{84, 0, 35, 0}},
		{"3.13 with 256 constants", Version{3, 13}, 256, []byte{149, 0},
			[]byte{71, 1, 83, 0, 34, 0, 71, 1, 83, 0, 53, 1, 0, 0, 0, 0, 0, 0, 32, 0}, []byte{85, 0, 36, 0}},
		{"3.11 with 65,536 constants", Version{3, 11}, 65536, []byte{151, 0},
			[]byte{2, 0, 144, 1, 144, 0, 100, 0, 144, 1, 144, 0, 100, 0, 166, 1, 0, 0, 171, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0},
			[]byte{124, 0, 83, 0}},
		{"3.12 generator with a free variable and a wide cell", Version{3, 12}, 1,
			[]byte{149, 1, 144, 1, 135, 2, 75, 0, 1, 0, 151, 0},
			[]byte{2, 0, 100, 1, 100, 1, 171, 1, 0, 0, 0, 0, 0, 0, 1, 0}, []byte{124, 0, 83, 0}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			code := slices.Concat(test.before, test.after)
			got, err := InsertPrologue(test.version, Code{Bytecode: code, NumConsts: test.consts, StackSize: 1, LineTable: locations(code)})
			if err != nil {
				t.Fatal(err)
			}
			if want := slices.Concat(test.before, test.prologue, test.after); !bytes.Equal(got.Bytecode, want) {
				t.Errorf("bytecode\n got %v\nwant %v", got.Bytecode, want)
			}
			if got.NumConsts != test.consts+1 || got.StackSize != 3 {
				t.Errorf("%d constants and a stack of %d, want %d and 3", got.NumConsts, got.StackSize, test.consts+1)
			}
		})
	}
}

func TestStackSizeIsKept(t *testing.T) {
	code := []byte{149, 0, 85, 0, 36, 0}
	got, err := InsertPrologue(Version{3, 13}, Code{Bytecode: code, StackSize: 9, LineTable: locations(code)})
	if err != nil || got.StackSize != 9 {
		t.Errorf("a stack of %d and %v, want 9", got.StackSize, err)
	}
}

// TestJumps has a jump back to the instruction after RESUME, as of a `while True:` at the start: its
// bytes stay, and so it lands after the prologue. One unit more and it would cross the prologue.
func TestJumps(t *testing.T) {
	// CPython 3.11: RESUME; NOP; JUMP_BACKWARD 2
	loop := []byte{151, 0, 9, 0, 140, 2}
	got, err := InsertPrologue(Version{3, 11}, Code{Bytecode: loop, LineTable: locations(loop)})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytecode[len(got.Bytecode)-4:], loop[2:]) {
		t.Errorf("the loop became %v", got.Bytecode)
	}
}

func TestUnknownShapes(t *testing.T) {
	v311, v313 := Version{3, 11}, Version{3, 13}
	tests := []struct {
		name    string
		version Version
		code    []byte
		says    string
	}{
		{"nothing", v313, nil, "no RESUME"},
		{"half a unit", v313, []byte{149, 0, 85}, "3 bytes"},
		{"no RESUME", v313, []byte{94, 0}, "no RESUME"},
		{"another opcode before RESUME", v313, []byte{85, 0, 149, 0, 36, 0}, "opcode 85 before"},
		{"RESUME after a yield", v313, []byte{149, 1, 36, 0}, "first RESUME"},
		{"RESUME with an extended argument", v313, []byte{71, 1, 149, 0, 36, 0}, "first RESUME"},
		{"nothing after RESUME", v313, []byte{149, 0}, "first RESUME"},
		{"a value on the stack at RESUME", v313, []byte{35, 0, 149, 0, 36, 0}, "first RESUME"},
		{"a pop from the empty stack", v313, []byte{32, 0, 35, 0, 149, 0, 36, 0}, "opcode 32 before"},
		{"caches cut short", v313, []byte{149, 0, 53, 0, 0, 0}, "cut short"},
		{"an extended argument at the end", v313, []byte{149, 0, 85, 0, 71, 0}, "cut short"},
		{"an argument beyond 32 bits", v313, []byte{149, 0, 71, 255, 71, 255, 71, 255, 85, 255, 36, 0}, "too long"},
		{"a jump back across the start", v311, []byte{151, 0, 9, 0, 140, 3}, "crosses"},
		{"a jump before the code", v311, []byte{151, 0, 9, 0, 140, 4}, "leaves"},
		{"a jump after the code", v311, []byte{151, 0, 110, 1, 83, 0}, "leaves"},
		{"3.13's code read as 3.11's", v311, []byte{149, 0, 85, 0, 36, 0}, "opcode 85 before"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var table []byte
			if len(test.code) > 1 {
				table = locations(test.code)
			}
			got, err := InsertPrologue(test.version, Code{Bytecode: test.code, LineTable: table})
			if !errors.Is(err, ErrUnknownShape) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v and %v, want ErrUnknownShape with %q", got, err, test.says)
			}
		})
	}
	code := []byte{149, 0, 85, 0, 36, 0}
	if _, err := InsertPrologue(v313, Code{Bytecode: code, LineTable: locations(code), NumConsts: -1}); !errors.Is(err, ErrUnknownShape) {
		t.Errorf("-1 constants: got %v, want ErrUnknownShape", err)
	}
}

// TestMalformedTables has tables that belong to other code.
func TestMalformedTables(t *testing.T) {
	whole := Code{Bytecode: []byte{151, 0, 124, 0, 83, 0}, LineTable: []byte{head(15, 3)}, ExceptionTable: exceptions([4]int{1, 1, 2, 0})}
	if _, err := InsertPrologue(Version{3, 11}, whole); err != nil {
		t.Fatal(err)
	}
	lines, handler := whole, whole
	lines.LineTable = []byte{head(15, 4)}
	handler.ExceptionTable = exceptions([4]int{1, 1, 3, 0})
	for _, c := range []Code{lines, handler} {
		if _, err := InsertPrologue(Version{3, 11}, c); !errors.Is(err, ErrUnknownShape) {
			t.Errorf("%v: got %v, want ErrUnknownShape", c, err)
		}
	}
}

// FuzzInsertPrologue looks for input that makes the transform panic, or answer with tables that it
// would itself refuse.
func FuzzInsertPrologue(f *testing.F) {
	add := func(minor byte, consts int, code, lines, exceptions []byte) {
		f.Add(minor, consts, code, lines, exceptions)
	}
	plain := []byte{151, 0, 124, 0, 83, 0}
	add(11, 1, plain, locations(plain), nil)
	add(12, 300, []byte{149, 1, 75, 0, 1, 0, 151, 0, 9, 0, 140, 2}, []byte{0x80 | 14<<3 | 5, 2, 1, 5, 9}, []byte{0x84, 2, 4, 3})
	add(13, 70000, []byte{149, 0, 85, 0, 36, 0}, []byte{0x80 | 11<<3 | 2, 3, 4}, []byte{0x81, 1, 2, 0})
	add(14, 0, []byte{128, 0, 84, 0, 35, 0}, []byte{0x80 | 13<<3 | 1, 66, 1, 0x80 | 3<<3, 7}, []byte{0xc0, 2, 0x40, 1, 2, 1})
	f.Fuzz(func(t *testing.T, minor byte, consts int, code, lines, exceptions []byte) {
		v := Version{3, int(minor)}
		in := Code{Bytecode: code, NumConsts: consts, LineTable: lines, ExceptionTable: exceptions}
		kept := cloneCode(in)
		out, err := InsertPrologue(v, in)
		if !equalCode(in, kept) {
			t.Error("the input was written to")
		}
		if err != nil {
			if v.Minor >= 11 && v.Minor <= 14 && errors.Is(err, ErrUnsupportedVersion) {
				t.Errorf("%s: %v", v, err)
			}
			if !errors.Is(err, ErrUnknownShape) && !errors.Is(err, ErrUnsupportedVersion) {
				t.Errorf("%v is neither ErrUnknownShape nor ErrUnsupportedVersion", err)
			}
			return
		}
		if n := len(out.Bytecode) - len(code); n < 14 || n%2 != 0 || out.NumConsts != consts+1 || out.StackSize < 3 {
			t.Errorf("%d bytes inserted, %d constants of %d, a stack of %d", n, out.NumConsts, consts, out.StackSize)
		}
		// What comes out has the compiler's shape still.
		out.NumConsts = min(out.NumConsts, 1<<30)
		if _, err := InsertPrologue(v, out); err != nil {
			t.Errorf("the result %v is refused: %v", out, err)
		}
	})
}

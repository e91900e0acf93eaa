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
		{"3.11", Version{3, 11}, 1, []byte{151, 0}, []byte{100, 1, 11, 0, 1, 0}, []byte{124, 0, 83, 0}},
		{"3.12", Version{3, 12}, 2, []byte{151, 0}, []byte{100, 2, 11, 0, 1, 0}, []byte{124, 0, 83, 0}},
		{"3.13", Version{3, 13}, 255, []byte{149, 0}, []byte{83, 255, 42, 0, 32, 0}, []byte{85, 0, 36, 0}},
		{"3.14", Version{3, 14}, 0, []byte{128, 0}, []byte{82, 0, 41, 0, 31, 0}, []byte{84, 0, 35, 0}},
		{"3.15", Version{3, 15}, 0, []byte{128, 0, 0, 0}, []byte{81, 0, 39, 0, 29, 0}, []byte{83, 0, 33, 0}},
		{"3.13 with 256 constants", Version{3, 13}, 256, []byte{149, 0}, []byte{71, 1, 83, 0, 42, 0, 32, 0}, []byte{85, 0, 36, 0}},
		{"3.11 with 65,536 constants", Version{3, 11}, 65536, []byte{151, 0},
			[]byte{144, 1, 144, 0, 100, 0, 11, 0, 1, 0}, []byte{124, 0, 83, 0}},
		{"3.12 generator with a free variable and a wide cell", Version{3, 12}, 1,
			[]byte{149, 1, 144, 1, 135, 2, 75, 0, 1, 0, 151, 0}, []byte{100, 1, 11, 0, 1, 0}, []byte{124, 0, 83, 0}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			code := slices.Concat(test.before, test.after)
			got, err := InsertPrologue(test.version, Code{Bytecode: code, NumConsts: test.consts, LineTable: locations(code)})
			if err != nil {
				t.Fatal(err)
			}
			if want := slices.Concat(test.before, test.prologue, test.after); !bytes.Equal(got.Bytecode, want) {
				t.Errorf("bytecode\n got %v\nwant %v", got.Bytecode, want)
			}
			if got.NumConsts != test.consts+1 || got.StackSize != 1 {
				t.Errorf("%d constants and a stack of %d, want %d and 1", got.NumConsts, got.StackSize, test.consts+1)
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

// TestGeneratorExpression has the iterator on the stack where CPython 3.15 starts a generator expression.
func TestGeneratorExpression(t *testing.T) {
	// RESUME 4; LOAD_FAST; GET_ITER; RETURN_GENERATOR; POP_TOP; RESUME 0; RETURN_VALUE
	code := []byte{128, 4, 0, 0, 83, 0, 70, 0, 0, 0, 32, 0, 29, 0, 128, 0, 0, 0, 33, 0}
	got, err := InsertPrologue(Version{3, 15}, Code{Bytecode: code, StackSize: 2, LineTable: locations(code)})
	if err != nil {
		t.Fatal(err)
	}
	if want := slices.Concat(code[:18], []byte{81, 0, 39, 0, 29, 0}, code[18:]); !bytes.Equal(got.Bytecode, want) || got.StackSize != 3 {
		t.Errorf("bytecode %v, a stack of %d\nwant %v and 3", got.Bytecode, got.StackSize, want)
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
		{"nothing", v313, nil, "0 bytes"},
		{"half a unit", v313, []byte{149, 0, 85}, "3 bytes"},
		{"no RESUME", v313, []byte{94, 0}, "no RESUME"},
		{"another opcode before RESUME", v313, []byte{85, 0, 149, 0, 36, 0}, "opcode 85 before"},
		{"RESUME after a yield", v313, []byte{149, 1, 36, 0}, "first RESUME"},
		{"RESUME with an extended argument", v313, []byte{71, 1, 149, 0, 36, 0}, "first RESUME"},
		{"nothing after RESUME", v313, []byte{149, 0}, "first RESUME"},
		{"a value on the stack at RESUME", v313, []byte{35, 0, 149, 0, 36, 0}, "first RESUME"},
		{"a call of what is not on the stack", v313, []byte{34, 0, 83, 0, 53, 1, 0, 0, 0, 0, 0, 0, 32, 0, 149, 0, 36, 0}, "opcode 53 before"},
		{"a pop from the empty stack", v313, []byte{32, 0, 35, 0, 149, 0, 36, 0}, "opcode 32 before"},
		{"caches cut short", v313, []byte{149, 0, 53, 0, 0, 0}, "cut short"},
		{"an extended argument at the end", v313, []byte{149, 0, 85, 0, 71, 0}, "cut short"},
		{"an argument beyond 32 bits", v313, []byte{149, 0, 71, 255, 71, 255, 71, 255, 85, 255, 36, 0}, "too long"},
		{"a jump back across the start", v311, []byte{151, 0, 9, 0, 140, 3}, "crosses"},
		{"a jump before the code", v311, []byte{151, 0, 9, 0, 140, 4}, "leaves"},
		{"a jump after the code", v311, []byte{151, 0, 110, 1, 83, 0}, "leaves"},
		{"a jump into an instruction", v311, []byte{151, 0, 110, 1, 144, 1, 100, 0, 83, 0}, "goes into the instruction at unit 2"},
		{"a jump into caches", v311, []byte{151, 0, 110, 1, 122, 0, 0, 0, 83, 0}, "goes into the instruction at unit 2"},
		{"an opcode that is not there", v311, []byte{151, 0, 3, 0, 83, 0}, "opcode 3 at unit 1"},
		{"a specialised opcode", v313, []byte{149, 0, 150, 0, 36, 0}, "opcode 150 at unit 1"},
		{"3.13's code read as 3.11's", v311, []byte{149, 0, 85, 0, 36, 0}, "opcode 85 before"},
		{"3.13's code read as 3.10's", Version{3, 10}, []byte{149, 0, 85, 0, 36, 0}, "opcode 149 at unit 0"},
		{"GEN_START in the middle", Version{3, 10}, []byte{nop, 0, genStart, 0, returnValue, 0}, "GEN_START"},
		{"GEN_START alone", Version{3, 10}, []byte{genStart, 0}, "GEN_START"},
		{"a jump back to GEN_START", Version{3, 10}, []byte{genStart, 0, nop, 0, jumpAbsolute, 0}, "crosses"},
		{"a jump to half a code unit", Version{3, 8}, []byte{nop, 0, jumpAbsolute, 1}, "leaves"},
		{"a jump to the code's end", Version{3, 9}, []byte{nop, 0, jumpAbsolute, 4}, "leaves"},
		{"a relative jump out of the code", Version{3, 9}, []byte{jumpForward, 2, nop, 0}, "leaves"},
		{"3.15's generator expression in 3.14", Version{3, 14}, []byte{128, 4, 34, 0, 31, 0, 128, 0, 35, 0}, "first RESUME"},
		{"the generator of a generator expression twice", Version{3, 15},
			[]byte{128, 4, 0, 0, 83, 0, 128, 4, 0, 0, 128, 0, 0, 0, 33, 0}, "first RESUME"},
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
	old := Code{Bytecode: []byte{nop, 0, returnValue, 0}, ExceptionTable: exceptions([4]int{0, 1, 1, 0})}
	if _, err := InsertPrologue(Version{3, 9}, old); !errors.Is(err, ErrUnknownShape) {
		t.Errorf("an exception table in 3.9: got %v, want ErrUnknownShape", err)
	}
	long := Code{Bytecode: make([]byte, MaxBytecode+2)}
	if _, err := InsertPrologue(v313, long); !errors.Is(err, ErrUnknownShape) || !strings.Contains(err.Error(), "16777218 bytes") {
		t.Errorf("longer than MaxBytecode: got %v, want ErrUnknownShape", err)
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

// FuzzInsertPrologue looks for input that makes the transform panic, write to it, or answer with what
// it would itself refuse. testdata/fuzz has what covered most of it in runs of some minutes.
func FuzzInsertPrologue(f *testing.F) {
	add := func(minor byte, consts int, code, lines, exceptions []byte) {
		f.Add(minor, consts, code, lines, exceptions)
	}
	plain := []byte{151, 0, 124, 0, 83, 0}
	add(11, 1, plain, locations(plain), nil)
	add(12, 300, []byte{149, 1, 75, 0, 1, 0, 151, 0, 9, 0, 140, 2}, []byte{0x80 | 14<<3 | 5, 2, 1, 5, 9}, []byte{0x84, 2, 4, 3})
	add(13, 70000, []byte{149, 0, 85, 0, 36, 0}, []byte{0x80 | 11<<3 | 2, 3, 4}, []byte{0x81, 1, 2, 0})
	add(14, 0, []byte{128, 0, 84, 0, 35, 0}, []byte{0x80 | 13<<3 | 1, 66, 1, 0x80 | 3<<3, 7}, []byte{0xc0, 2, 0x40, 1, 2, 1})
	add(15, 0, []byte{128, 4, 0, 0, 83, 0, 70, 0, 0, 0, 32, 0, 29, 0, 128, 0, 0, 0, 33, 0}, []byte{0x80 | 15<<3 | 7, 0x80 | 15<<3 | 1}, nil)
	loop := slices.Concat([]byte{forIter, 254}, nops(126), []byte{jumpAbsolute, 252, returnValue, 0})
	add(8, 1, loop, []byte{0, 1, 254, 0, 1, 0, 1, 2}, nil)
	add(9, 1, loop, []byte{4, 1, 250, 0x80}, nil)
	add(10, 1, []byte{genStart, 0, nop, 0, jumpAbsolute, 1}, []byte{2, 0x80, 4, 1}, nil)
	add(10, 1, slices.Concat(nops(253), []byte{jumpAbsolute, 253}), []byte{254, 1, 254, 0}, nil)
	f.Fuzz(func(t *testing.T, minor byte, consts int, code, lines, exceptions []byte) {
		v := Version{3, int(minor)}
		in := Code{Bytecode: code, NumConsts: consts, LineTable: lines, ExceptionTable: exceptions}
		kept := cloneCode(in)
		out, err := InsertPrologue(v, in)
		if !equalCode(in, kept) {
			t.Error("the input was written to")
		}
		if err != nil {
			if v.Magic() != 0 && errors.Is(err, ErrUnsupportedVersion) {
				t.Errorf("%s: %v", v, err)
			}
			if !errors.Is(err, ErrUnknownShape) && !errors.Is(err, ErrUnsupportedVersion) {
				t.Errorf("%v is neither ErrUnknownShape nor ErrUnsupportedVersion", err)
			}
			return
		}
		if n := len(out.Bytecode) - len(code); n < 6 || n%2 != 0 || out.NumConsts != consts+1 || out.StackSize < 1 {
			t.Errorf("%d bytes inserted, %d constants of %d, a stack of %d", n, out.NumConsts, consts, out.StackSize)
		}
		checkInstructions(t, versions[v], in, out)
		// What comes out has the compiler's shape still.
		out.NumConsts = min(out.NumConsts, 1<<30)
		if _, err := InsertPrologue(v, out); err != nil {
			t.Errorf("the result %v is refused: %v", out, err)
		}
	})
}

// checkInstructions compares the instructions without the prologue: they are the same, and jumps go to the same.
func checkInstructions(t *testing.T, ops *opcodes, in, out Code) {
	was, err := ops.decode(in.Bytecode)
	if err != nil {
		t.Fatal(err)
	}
	now, err := ops.decode(out.Bytecode)
	if err != nil {
		t.Fatal(err)
	}
	at, _, err := ops.findStart(was)
	if err != nil || len(now) != len(was)+3 {
		t.Fatalf("%v, %d instructions of %d", err, len(now), len(was))
	}
	for i, a := range was {
		b := now[i]
		if i >= at {
			b = now[i+3]
		}
		target := a.target
		if target >= int32(at) {
			target += 3
		}
		if a.opcode != b.opcode || a.target < 0 && a.arg != b.arg || b.target != target {
			t.Errorf("instruction %d: %+v became %+v", i, a, b)
		}
	}
}

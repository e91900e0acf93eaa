package bytecode

import (
	"fmt"
	"math"
	"slices"
)

// MaxBytecode is the length in bytes of the longest bytecode that is rewritten. The work takes some 20
// times as much memory.
const MaxBytecode = 16 << 20

// Code is what the transform reads and writes of a code object.
type Code struct {
	Bytecode       []byte // co_code: no specialised opcodes, no cache contents
	NumConsts      int    // len(co_consts)
	StackSize      int    // co_stacksize
	LineTable      []byte // co_lnotab in CPython 3.8 and 3.9, co_linetable from 3.10 on
	ExceptionTable []byte // co_exceptiontable, empty before CPython 3.11
}

// InsertPrologue returns c with a prologue that negates consts[c.NumConsts], the hook, and drops what
// that returns. The caller appends the hook to co_consts.
func InsertPrologue(v Version, c Code) (Code, error) {
	ops := versions[v]
	if ops == nil {
		return Code{}, fmt.Errorf("%w: %s", ErrUnsupportedVersion, v)
	}
	if c.NumConsts < 0 || c.NumConsts >= math.MaxInt32 {
		return Code{}, fmt.Errorf("%w: %d constants", ErrUnknownShape, c.NumConsts)
	}
	if len(c.Bytecode) > MaxBytecode {
		return Code{}, fmt.Errorf("%w: bytecode of %d bytes, more than the %d that are rewritten", ErrUnknownShape,
			len(c.Bytecode), MaxBytecode)
	}
	instructions, err := ops.decode(c.Bytecode)
	if err != nil {
		return Code{}, err
	}
	at, depth, err := ops.findStart(instructions)
	if err != nil {
		return Code{}, err
	}
	for i, in := range instructions {
		if in.target >= 0 && (i < at) != (int(in.target) < at) {
			return Code{}, fmt.Errorf("%w: the jump from unit %d crosses the function's start", ErrUnknownShape, in.start)
		}
	}
	prologue := ops.prologue(c.NumConsts)
	rewrite := ops.insert
	if ops.resume == 0 {
		rewrite = ops.insertAbsolute
	}
	out, err := rewrite(c, instructions, at, prologue)
	if err != nil {
		return Code{}, err
	}
	out.NumConsts = c.NumConsts + 1
	out.StackSize = max(c.StackSize, depth+1)
	return out, nil
}

// insert is for CPython 3.11 and later, where jumps are relative: those that do not cross the prologue
// need no change.
func (ops *opcodes) insert(c Code, instructions []instruction, at int, prologue []byte) (Code, error) {
	unit, units, room := int(instructions[at].start), len(c.Bytecode)/2, len(prologue)/2
	lines, err := insertLines(c.LineTable, units, unit, room)
	if err != nil {
		return Code{}, err
	}
	exceptions, err := shiftExceptions(c.ExceptionTable, units, unit, room)
	if err != nil {
		return Code{}, err
	}
	return Code{
		Bytecode:       slices.Concat(c.Bytecode[:2*unit], prologue, c.Bytecode[2*unit:]),
		LineTable:      lines,
		ExceptionTable: exceptions,
	}, nil
}

// insertAbsolute is for CPython 3.8 to 3.10, where the handlers of exceptions are named by instructions.
func (ops *opcodes) insertAbsolute(c Code, instructions []instruction, at int, prologue []byte) (Code, error) {
	if len(c.ExceptionTable) > 0 {
		return Code{}, fmt.Errorf("%w: an exception table", ErrUnknownShape)
	}
	r, err := ops.relocate(instructions, at, int32(len(prologue)/2))
	if err != nil {
		return Code{}, err
	}
	move := moveLines
	if ops.byteJumps {
		move = moveLnotab
	}
	lines, err := move(c.LineTable, r)
	if err != nil {
		return Code{}, err
	}
	return Code{Bytecode: r.bytecode(prologue), LineTable: lines}, nil
}

// findStart returns the index of the instruction that the prologue goes before, and how deep the stack
// is there: it is empty but in CPython 3.15's generator expressions, which have their iterator on it.
// What RETURN_GENERATOR leaves POP_TOP has taken away.
func (ops *opcodes) findStart(instructions []instruction) (at, depth int, err error) {
	if ops.resume == 0 {
		at, err = ops.findGenStart(instructions)
		return at, 0, err
	}
	effects, genExpr := ops.before, false
	for i, in := range instructions {
		if in.opcode == ops.resume {
			switch {
			case in.prefixes > 0 || !genExpr && depth > 0 || i+1 == len(instructions):
			case in.arg == 0:
				return i + 1, depth, nil
			case in.arg == genExprStart && !genExpr && ops.beforeGenExpr != nil:
				effects, genExpr = ops.beforeGenExpr, true
				continue
			}
			return 0, 0, fmt.Errorf("%w: the first RESUME is not that of a start", ErrUnknownShape)
		}
		effect, known := effects[in.opcode]
		if !known && !genExpr {
			effect, known = ops.calling(in, depth)
		}
		if depth += effect; !known || depth < 0 {
			return 0, 0, fmt.Errorf("%w: opcode %d before RESUME", ErrUnknownShape, in.opcode)
		}
	}
	return 0, 0, fmt.Errorf("%w: no RESUME", ErrUnknownShape)
}

// calling returns the effect of an instruction by which a constant is called with constants.
func (ops *opcodes) calling(in instruction, depth int) (effect int, known bool) {
	switch {
	case ops.call == 0 || in.opcode == 0:
		return 0, false
	case in.opcode == ops.loadConst, in.opcode == ops.pushNull:
		return 1, true
	case in.opcode == ops.precall:
		return 0, true
	case in.opcode == ops.call && int(in.arg)+2 <= depth: // the callable, and the null beside it
		return -int(in.arg) - 1, true
	}
	return 0, false
}

// findGenStart is findStart before CPython 3.11: GEN_START, where there is one, takes from the stack what
// a generator is sent first.
func (ops *opcodes) findGenStart(instructions []instruction) (int, error) {
	at := 0
	for i, in := range instructions {
		if ops.genStart == 0 || in.opcode != ops.genStart {
			continue
		}
		if i > 0 || in.prefixes > 0 || len(instructions) == 1 {
			return 0, fmt.Errorf("%w: GEN_START is not at a generator's start", ErrUnknownShape)
		}
		at = 1
	}
	return at, nil
}

// prologue assembles the negation of the hook.
func (ops *opcodes) prologue(hook int) []byte {
	var code []byte
	for shift := 24; shift > 0; shift -= 8 {
		if hook>>shift != 0 {
			code = append(code, ops.extendedArg, byte(hook>>shift))
		}
	}
	return append(code, ops.loadConst, byte(hook), ops.unaryNegative, 0, ops.popTop, 0)
}

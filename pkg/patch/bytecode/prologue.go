package bytecode

import (
	"fmt"
	"math"
	"slices"
)

// Code is what the transform reads and writes of a code object.
type Code struct {
	Bytecode       []byte // co_code: no specialised opcodes, no cache contents
	NumConsts      int    // len(co_consts)
	StackSize      int    // co_stacksize
	LineTable      []byte // co_linetable
	ExceptionTable []byte // co_exceptiontable
}

// InsertPrologue returns c with a prologue that calls consts[c.NumConsts], the hook, with itself as
// the one argument, and drops what it returns. The caller appends the hook to co_consts.
func InsertPrologue(v Version, c Code) (Code, error) {
	ops := versions[v]
	if ops == nil {
		return Code{}, fmt.Errorf("%w: %s", ErrUnsupportedVersion, v)
	}
	if c.NumConsts < 0 || c.NumConsts >= math.MaxInt32 {
		return Code{}, fmt.Errorf("%w: %d constants", ErrUnknownShape, c.NumConsts)
	}
	at, err := ops.findStart(c.Bytecode)
	if err != nil {
		return Code{}, err
	}
	if err := ops.checkJumps(c.Bytecode, at); err != nil {
		return Code{}, err
	}
	prologue := ops.prologue(c.NumConsts)
	units := len(c.Bytecode) / 2
	lines, err := insertLines(c.LineTable, units, at, len(prologue)/2)
	if err != nil {
		return Code{}, err
	}
	exceptions, err := shiftExceptions(c.ExceptionTable, units, at, len(prologue)/2)
	if err != nil {
		return Code{}, err
	}
	return Code{
		Bytecode:       slices.Concat(c.Bytecode[:2*at], prologue, c.Bytecode[2*at:]),
		NumConsts:      c.NumConsts + 1,
		StackSize:      max(c.StackSize, ops.depth), // findStart makes sure that the stack is empty
		LineTable:      lines,
		ExceptionTable: exceptions,
	}, nil
}

// findStart returns the code unit right after the RESUME that starts the function. The stack is
// empty there: what RETURN_GENERATOR leaves on it, POP_TOP has taken away.
func (ops *opcodes) findStart(code []byte) (int, error) {
	if len(code)%2 != 0 {
		return 0, fmt.Errorf("%w: bytecode of %d bytes", ErrUnknownShape, len(code))
	}
	depth, extended := 0, false
	for unit := 0; 2*unit < len(code); unit++ {
		opcode, arg := code[2*unit], code[2*unit+1]
		if opcode == ops.extendedArg {
			extended = true
			continue
		}
		if opcode == ops.resume {
			if extended || arg != 0 || depth != 0 || 2*(unit+1) == len(code) {
				return 0, fmt.Errorf("%w: the first RESUME is not that of a start", ErrUnknownShape)
			}
			return unit + 1, nil
		}
		effect, known := ops.before[opcode]
		if depth += effect; !known || depth < 0 {
			return 0, fmt.Errorf("%w: opcode %d before RESUME", ErrUnknownShape, opcode)
		}
		extended = false
	}
	return 0, fmt.Errorf("%w: no RESUME", ErrUnknownShape)
}

// checkJumps refuses code in which a jump crosses the unit at: all jumps are relative, and only
// those that do not cross the prologue need no change.
func (ops *opcodes) checkJumps(code []byte, at int) error {
	units := len(code) / 2
	arg := 0
	for unit := 0; unit < units; {
		opcode := code[2*unit]
		arg = arg<<8 | int(code[2*unit+1])
		next := unit + 1 + ops.caches[opcode]
		if next > units || arg > math.MaxInt32 || opcode == ops.extendedArg && next == units {
			return fmt.Errorf("%w: the instruction at unit %d is cut short or too long", ErrUnknownShape, unit)
		}
		if opcode == ops.extendedArg {
			unit = next
			continue
		}
		if backward, jump := ops.jumps[opcode]; jump {
			target := next + arg
			if backward {
				target = next - arg
			}
			if target < 0 || target >= units {
				return fmt.Errorf("%w: a jump from unit %d leaves the code", ErrUnknownShape, unit)
			}
			if (unit < at) != (target < at) {
				return fmt.Errorf("%w: the jump from unit %d crosses the function's start", ErrUnknownShape, unit)
			}
		}
		arg = 0
		unit = next
	}
	return nil
}

// prologue assembles the call of the hook.
func (ops *opcodes) prologue(hook int) []byte {
	var code []byte
	for _, in := range ops.callHook {
		arg := in.arg
		if in.hook {
			for shift := 24; shift > 0; shift -= 8 {
				if hook>>shift != 0 {
					code = append(code, ops.extendedArg, byte(hook>>shift))
				}
			}
			arg = byte(hook)
		}
		code = append(code, in.opcode, arg)
		code = append(code, make([]byte, 2*ops.caches[in.opcode])...)
	}
	return code
}

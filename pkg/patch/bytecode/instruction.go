package bytecode

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// instruction is one instruction of the bytecode. Its code units are as many EXTENDED_ARGs as it has
// prefixes, the opcode, and the opcode's inline caches.
type instruction struct {
	start    int32 // the first code unit
	arg      int32
	target   int32 // the index of the instruction that a jump goes to, -1 for what is no jump
	opcode   byte
	prefixes byte
}

// jump is how an opcode's argument names the instruction to go to.
type jump byte

const (
	noJump   jump = iota
	forward       // from the next instruction on
	backward      // from the next instruction back
	absolute      // from the first code unit on
)

func (ops *opcodes) end(in instruction) int32 {
	return in.start + int32(in.prefixes) + 1 + int32(ops.caches[in.opcode])
}

// decode reads bytecode, and refuses it where an opcode is unknown or a jump goes anywhere but to an
// instruction.
func (ops *opcodes) decode(code []byte) ([]instruction, error) {
	if len(code)%2 != 0 || len(code) == 0 {
		return nil, fmt.Errorf("%w: bytecode of %d bytes", ErrUnknownShape, len(code))
	}
	units := int32(len(code) / 2)
	instructions := make([]instruction, 0, units)
	for start := int32(0); start < units; {
		in := instruction{start: start, target: -1}
		arg := int64(code[2*start+1])
		at := start
		for ; code[2*at] == ops.extendedArg && at+1 < units; at++ {
			arg = arg<<8 | int64(code[2*at+3])
			in.prefixes++
			if arg > math.MaxInt32 || in.prefixes > 3 {
				return nil, fmt.Errorf("%w: the argument at unit %d is too long", ErrUnknownShape, start)
			}
		}
		in.opcode, in.arg = code[2*at], int32(arg)
		if !ops.known[in.opcode] {
			return nil, fmt.Errorf("%w: opcode %d at unit %d", ErrUnknownShape, in.opcode, at)
		}
		next := ops.end(in)
		if next > units || in.opcode == ops.extendedArg {
			return nil, fmt.Errorf("%w: the instruction at unit %d is cut short", ErrUnknownShape, start)
		}
		instructions = append(instructions, in)
		start = next
	}
	for i := range instructions {
		in := &instructions[i]
		kind := ops.jumps[in.opcode]
		if kind == noJump {
			continue
		}
		unit, whole := ops.targetUnit(*in)
		if !whole || unit < 0 || unit >= int64(units) {
			return nil, fmt.Errorf("%w: a jump from unit %d leaves the code", ErrUnknownShape, in.start)
		}
		target, found := slices.BinarySearchFunc(instructions, int32(unit), func(in instruction, unit int32) int {
			return cmp.Compare(in.start, unit)
		})
		if !found {
			return nil, fmt.Errorf("%w: a jump from unit %d goes into the instruction at unit %d", ErrUnknownShape,
				in.start, instructions[target-1].start)
		}
		in.target = int32(target)
	}
	return instructions, nil
}

// targetUnit is the code unit that a jump goes to, and whether its argument names a whole one.
func (ops *opcodes) targetUnit(in instruction) (int64, bool) {
	distance, whole := int64(in.arg), true
	if ops.byteJumps {
		distance, whole = distance/2, distance%2 == 0
	}
	switch ops.jumps[in.opcode] {
	case forward:
		return int64(ops.end(in)) + distance, whole
	case backward:
		return int64(ops.end(in)) - distance, whole
	}
	return distance, whole
}

package bytecode

import (
	"fmt"
	"sort"
)

// maxPasses bounds the work of relocate: where arguments grow, CPython's own code settles in two or
// three passes.
const maxPasses = 64

// relocation is bytecode of CPython 3.8 to 3.10 with room before one instruction. Jumps there are
// absolute, so that targets are named anew, and an argument of more bytes takes EXTENDED_ARGs that move what follows.
type relocation struct {
	ops    *opcodes
	was    []instruction
	at     int // the index of the instruction that has room before it
	room   int32
	now    []instruction // was, at its new place and with arguments that are right there
	units  int32         // of was
	growth int32         // how many code units more now has, with the room
}

func (ops *opcodes) relocate(was []instruction, at int, room int32) (*relocation, error) {
	last := was[len(was)-1]
	r := &relocation{ops: ops, was: was, at: at, room: room, now: append([]instruction(nil), was...), units: ops.end(last)}
	for range maxPasses {
		r.place()
		if !r.retarget() {
			return r, nil
		}
	}
	return nil, fmt.Errorf("%w: jumps that go on growing", ErrUnknownShape)
}

// place gives each instruction its first code unit.
func (r *relocation) place() {
	unit := int32(0)
	for i := range r.now {
		if i == r.at {
			unit += r.room
		}
		r.now[i].start = unit
		unit = r.ops.end(r.now[i])
	}
	r.growth = unit - r.units
}

// retarget gives each jump the argument that leads to its target, and tells whether one needs more
// EXTENDED_ARGs than it has. One that needs fewer keeps them, as in CPython's own assembler.
func (r *relocation) retarget() (grown bool) {
	for i := range r.now {
		in := &r.now[i]
		if in.target < 0 {
			continue
		}
		in.arg = r.now[in.target].start
		if r.ops.jumps[in.opcode] == forward {
			in.arg -= r.ops.end(*in)
		}
		if r.ops.byteJumps {
			in.arg *= 2
		}
		for in.arg>>(8*(in.prefixes+1)) != 0 {
			in.prefixes++
			grown = true
		}
	}
	return grown
}

// bytecode assembles the instructions, with a prologue in the room.
func (r *relocation) bytecode(prologue []byte) []byte {
	code := make([]byte, 0, 2*(r.units+r.growth))
	for i, in := range r.now {
		if i == r.at {
			code = append(code, prologue...)
		}
		for n := in.prefixes; n > 0; n-- {
			code = append(code, r.ops.extendedArg, byte(in.arg>>(8*n)))
		}
		code = append(code, in.opcode, byte(in.arg))
	}
	return code
}

// moved is where a byte offset of the code has gone. Offsets beyond the code's end, which line tables
// have where the compiler removed code, stay as far beyond it.
func (r *relocation) moved(offset int) int {
	if offset >= 2*int(r.units) {
		return offset + 2*int(r.growth)
	}
	i := sort.Search(len(r.was), func(i int) bool { return 2*int(r.was[i].start) > offset }) - 1
	was, now := 2*int(r.was[i].start), 2*int(r.now[i].start)
	if offset > was { // within an instruction, whose new EXTENDED_ARGs come first
		now += 2 * int(r.now[i].prefixes-r.was[i].prefixes)
	}
	return now + offset - was
}

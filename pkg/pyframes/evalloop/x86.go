package evalloop

import (
	"bytes"

	"golang.org/x/arch/x86/x86asm"
)

// A Register is a general register, numbered as the instruction set numbers it: 0 is rax, 15 is r15.
type Register uint8

const (
	rax          Register = 0
	rcx          Register = 1
	rdx          Register = 2
	stackPointer Register = 4
	framePointer Register = 5
	rsi          Register = 6
	rdi          Register = 7
)

// longestInstruction is the most bytes that an instruction has.
const longestInstruction = 15

// endbr64 marks where an indirect jump may land. To processors without that check it does nothing,
// and x86asm does not know it.
var endbr64 = []byte{0xf3, 0x0f, 0x1e, 0xfa}

// decode disassembles the instruction that code begins with.
func decode(code []byte) (x86asm.Inst, error) {
	if bytes.HasPrefix(code, endbr64) {
		return x86asm.Inst{Op: x86asm.NOP, Len: len(endbr64), Mode: 64}, nil
	}
	return x86asm.Decode(code, 64)
}

// register numbers a general register of any width.
func register(arg x86asm.Arg) (Register, bool) {
	r, ok := arg.(x86asm.Reg)
	if !ok {
		return 0, false
	}
	switch {
	case r >= x86asm.RAX && r <= x86asm.R15:
		return Register(r - x86asm.RAX), true
	case r >= x86asm.EAX && r <= x86asm.R15L:
		return Register(r - x86asm.EAX), true
	case r >= x86asm.AX && r <= x86asm.R15W:
		return Register(r - x86asm.AX), true
	case r >= x86asm.AL && r <= x86asm.BL:
		return Register(r - x86asm.AL), true
	case r >= x86asm.AH && r <= x86asm.BH:
		return Register(r - x86asm.AH), true
	case r >= x86asm.SPB && r <= x86asm.R15B:
		return Register(r-x86asm.SPB) + 4, true
	}
	return 0, false
}

// whole is register for those of 64 bits.
func whole(arg x86asm.Arg) (Register, bool) {
	r, ok := arg.(x86asm.Reg)
	return Register(r - x86asm.RAX), ok && r >= x86asm.RAX && r <= x86asm.R15
}

// memory returns the operand that is memory at a register plus a displacement.
func memory(arg x86asm.Arg) (base Register, disp int32, ok bool) {
	mem, isMem := arg.(x86asm.Mem)
	if !isMem || mem.Index != 0 || mem.Segment != 0 {
		return 0, 0, false
	}
	base, ok = whole(mem.Base)
	return base, int32(mem.Disp), ok
}

func branches(op x86asm.Op) bool {
	return op == x86asm.JMP || op == x86asm.CALL || op == x86asm.RET || conditional(op)
}

func conditional(op x86asm.Op) bool {
	switch op {
	case x86asm.JA, x86asm.JAE, x86asm.JB, x86asm.JBE, x86asm.JE, x86asm.JG, x86asm.JGE, x86asm.JL, x86asm.JLE,
		x86asm.JNE, x86asm.JNO, x86asm.JNP, x86asm.JNS, x86asm.JO, x86asm.JP, x86asm.JS:
		return true
	}
	return false
}

// emulated reports whether the kernel emulates a probed instruction rather than single-stepping it,
// which costs a twentieth: jumps to an address that is in the instruction, and pushing a register
// (branch_setup_xol_ops and push_setup_xol_ops in the kernel's arch/x86/kernel/uprobes.c).
func emulated(in x86asm.Inst) bool {
	if in.Op == x86asm.PUSH {
		_, ok := whole(in.Args[0])
		return ok
	}
	_, relative := in.Args[0].(x86asm.Rel)
	return relative && (in.Op == x86asm.JMP || conditional(in.Op))
}

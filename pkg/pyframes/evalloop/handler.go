package evalloop

import (
	"fmt"

	"golang.org/x/arch/x86/x86asm"
)

// A value is what a register held when a handler was entered, or what memory held that such a
// register led to, plus a constant.
type value struct {
	known bool
	base  Register
	loads uint8           // 0: base; 1: the 8 bytes at base plus disps[0]; and so on
	disps [maxLoads]int32 // of each load
	add   int32
}

// maxLoads is how many pointers are followed: stack, thread, interpreter.
const maxLoads = 3

// same reports whether two values differ by a constant at most.
func (v value) same(w value) bool {
	v.add, w.add = 0, 0
	return v.known && v == w
}

// load returns the 8 bytes at disp past a value.
func (v value) load(disp int32) value {
	if !v.known || v.loads == maxLoads {
		return value{}
	}
	v.disps[v.loads] = v.add + disp
	v.loads++
	v.add = 0
	return v
}

// loadedFrom returns the value that v is the 8 bytes at disp past of.
func (v value) loadedFrom(disp int32) value {
	if !v.known || v.loads == 0 || v.add != 0 || v.disps[v.loads-1] != disp {
		return value{}
	}
	v.loads--
	v.disps[v.loads] = 0
	return v
}

// A state is what is known at one instruction of a handler, in terms of its entry.
type state struct {
	registers [16]value
	stores    []store
}

// A store is memory that was written since the entry.
type store struct {
	base Register
	disp int32
	size int32
}

func entryState() state {
	var s state
	for r := range s.registers {
		s.registers[r] = value{known: true, base: Register(r)}
	}
	return s
}

// A block is a handler from its start up to its first branch, which every execution passes.
type block struct {
	opcode uint8
	start  uint64
	steps  []step
	branch x86asm.Inst
	roles  roles
	// version says that the block reads a code object's instrumentation version where it should be.
	version bool
}

// A step is an instruction and what is known before it. The last one is the branch.
type step struct {
	addr  uint64
	state state
}

func (b *block) end() step { return b.steps[len(b.steps)-1] }

// roles are what the eval loop keeps where, at the entry of a handler. Since any instruction may
// follow any other, each dispatch leaves all of them in place for all handlers.
type roles struct {
	frame, instr, thread value
}

// merge fills in what is not known.
func (r *roles) merge(other roles) {
	if !r.frame.known || !r.instr.known {
		r.frame, r.instr = other.frame, other.instr
	}
	if !r.thread.known {
		r.thread = other.thread
	}
}

// maxScan is how many instructions of a handler are looked at.
const maxScan = 32

// readBlock follows a handler up to its first branch, and learns the roles from what it does:
// storing the instruction pointer into the frame, and reading fields of the thread.
func (img *image) readBlock(start uint64, opcode uint8, known *release) (*block, error) {
	b := &block{opcode: opcode, start: start}
	code, pc, now := img.at(start), start, entryState()
	for range maxScan {
		in, err := decode(code)
		if err != nil {
			return nil, fmt.Errorf("%w: at %#x: %w", ErrUnknownBuild, pc, err)
		}
		b.steps = append(b.steps, step{pc, now})
		if branches(in.Op) {
			b.branch = in
			return b, nil
		}
		if err := b.learn(in, &now, known); err != nil {
			return nil, fmt.Errorf("%w at %#x", err, pc)
		}
		if now, err = now.after(in); err != nil {
			return nil, fmt.Errorf("%w: at %#x: %w", ErrUnknownBuild, pc, err)
		}
		code, pc = code[in.Len:], pc+uint64(in.Len)
	}
	return nil, fmt.Errorf("%w: no branch in its first %d instructions", ErrUnknownBuild, maxScan)
}

// learn recognises what an instruction shows.
func (b *block) learn(in x86asm.Inst, now *state, known *release) error {
	if in.Op != x86asm.MOV && in.Op != x86asm.CMP {
		return nil
	}
	for i, arg := range in.Args {
		base, disp, ok := memory(arg)
		if !ok {
			continue
		}
		at := now.registers[base]
		if !at.known || at.loads == 0 && at.base == stackPointer {
			continue
		}
		// `mov INSTR, 0x38(FRAME)`, the first thing that most handlers do.
		if i == 0 && in.Op == x86asm.MOV && disp == frameInstr && in.MemBytes == 8 && !b.roles.frame.known {
			if r, ok := whole(in.Args[1]); ok && now.registers[r].known {
				b.roles.frame, b.roles.instr = at, now.registers[r]
				continue
			}
		}
		if known.version == nil {
			continue
		}
		if thread := known.version.threadOf(at, disp, in.MemBytes); thread.known {
			if b.roles.thread.known && b.roles.thread != thread {
				return fmt.Errorf("%w: what it reads are the fields of two threads", ErrUnknownBuild)
			}
			b.roles.thread = thread
		}
		// Reading CODE_VERSION(CODE), where CODE was loaded from the frame.
		if in.MemBytes == 8 && b.roles.frame.known && at == b.roles.frame.load(int32(known.frameCode)) {
			if disp == int32(known.version.CodeVersion) {
				b.version = true
			} else if in.Op == x86asm.CMP {
				return fmt.Errorf("%w: the code object's version is at %d, not at %d", ErrUnknownBuild, disp, known.version.CodeVersion)
			}
		}
	}
	return nil
}

// after returns what is known after an instruction that is no branch.
func (s state) after(in x86asm.Inst) (state, error) {
	next := s
	set := func(r Register, v value) { next.registers[r] = v }
	forget := func(registers ...Register) {
		for _, r := range registers {
			set(r, value{})
		}
	}
	if _, isMem := in.Args[0].(x86asm.Mem); isMem && in.Op != x86asm.CMP && in.Op != x86asm.TEST && in.Op != x86asm.PUSH {
		if base, disp, ok := memory(in.Args[0]); ok && s.registers[base].known && s.registers[base].loads == 0 {
			at := s.registers[base]
			next.stores = append(s.stores[:len(s.stores):len(s.stores)], store{at.base, at.add + disp, int32(max(in.MemBytes, 16))})
		}
	}
	target, isWhole := whole(in.Args[0])
	written, isRegister := register(in.Args[0])
	switch in.Op {
	case x86asm.CMP, x86asm.TEST, x86asm.NOP, x86asm.UCOMISS, x86asm.UCOMISD, x86asm.COMISS, x86asm.COMISD, x86asm.BT:
		return next, nil
	case x86asm.PUSH:
		next.registers[stackPointer].add -= 8
		top := next.registers[stackPointer]
		next.stores = append(s.stores[:len(s.stores):len(s.stores)], store{top.base, top.add, 8})
		return next, nil
	case x86asm.POP:
		next.registers[stackPointer].add += 8
		forget(written)
		return next, nil
	case x86asm.MOV:
		if !isWhole {
			break
		}
		if from, ok := whole(in.Args[1]); ok {
			set(target, s.registers[from])
			return next, nil
		}
		if base, disp, ok := memory(in.Args[1]); ok && in.MemBytes == 8 {
			loaded := s.registers[base].load(disp)
			if s.overwritten(loaded) {
				loaded = value{}
			}
			set(target, loaded)
			return next, nil
		}
	case x86asm.LEA:
		if base, disp, ok := memory(in.Args[1]); ok && isWhole && s.registers[base].known {
			v := s.registers[base]
			v.add += disp
			set(target, v)
			return next, nil
		}
	case x86asm.ADD, x86asm.SUB:
		if imm, ok := in.Args[1].(x86asm.Imm); ok && isWhole && s.registers[target].known {
			if in.Op == x86asm.SUB {
				imm = -imm
			}
			next.registers[target].add += int32(imm)
			return next, nil
		}
	case x86asm.AND:
		// Clearing a tag keeps what is known of the pointer.
		if imm, ok := in.Args[1].(x86asm.Imm); ok && isWhole && -8 <= imm && imm < 0 {
			return next, nil
		}
	case x86asm.OR, x86asm.XOR, x86asm.INC, x86asm.DEC, x86asm.NEG, x86asm.NOT, x86asm.SHL, x86asm.SHR,
		x86asm.SAR, x86asm.MOVZX, x86asm.MOVSX, x86asm.MOVSXD, x86asm.MOVAPS, x86asm.MOVUPS, x86asm.MOVDQA, x86asm.MOVDQU,
		x86asm.MOVQ, x86asm.MOVD, x86asm.PXOR, x86asm.XORPS, x86asm.PUNPCKLQDQ, x86asm.MOVSD_XMM, x86asm.MOVSS,
		x86asm.SETA, x86asm.SETAE, x86asm.SETB, x86asm.SETBE, x86asm.SETE, x86asm.SETNE, x86asm.SETG, x86asm.SETGE, x86asm.SETL, x86asm.SETLE,
		x86asm.CMOVA, x86asm.CMOVAE, x86asm.CMOVB, x86asm.CMOVBE, x86asm.CMOVE, x86asm.CMOVNE, x86asm.CMOVG, x86asm.CMOVGE, x86asm.CMOVL, x86asm.CMOVLE:
	case x86asm.CDQE, x86asm.CWDE:
		forget(rax)
		return next, nil
	case x86asm.CQO, x86asm.CDQ:
		forget(rdx)
		return next, nil
	default: // it may write what its operands do not show
		return next, fmt.Errorf("%s is not understood", in.Op)
	}
	if isRegister {
		forget(written)
	}
	return next, nil
}

// overwritten reports whether the memory that a value is read from was written since the entry.
// Memory reached through other registers is taken for other memory: what is spilled to the stack
// has no pointer to it.
func (s *state) overwritten(v value) bool {
	for _, w := range s.stores {
		if v.loads > 0 && w.base == v.base && v.disps[0] < w.disp+w.size && w.disp < v.disps[0]+8 {
			return true
		}
	}
	return false
}

// locate says where a value of the entry is now: where it was then, if it is still there.
func (s *state) locate(v value) (Location, bool) {
	if !v.known {
		return Location{}, false
	}
	base := value{known: true, base: v.base}
	switch held := s.registers[v.base]; {
	case v.loads == 0 && held.same(base):
		return Location{Base: v.base, Add: v.add - held.add}, true
	case v.loads == 1 && held.same(base) && !s.overwritten(v):
		return Location{Base: v.base, Memory: true, Disp: v.disps[0] - held.add, Add: v.add}, true
	}
	for r, held := range s.registers {
		if held.same(v) {
			return Location{Base: Register(r), Add: v.add - held.add}, true
		}
	}
	return Location{}, false
}

package evalloop

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/arch/x86/x86asm"
)

// A Register is a general register, numbered as the instruction set numbers it: 0 is rax, 15 is r15.
type Register uint8

// A Site is a place to put a uprobe at, and how to read the frame there.
type Site struct {
	Opcode uint8
	Offset uint64 // in the file
	// Emulated says that the kernel emulates the probed instruction, which costs a twentieth of
	// single-stepping it.
	Emulated bool
	// Frame holds the frame; Instr holds the address of the RESUME, plus InstrAhead bytes.
	Frame, Instr Register
	InstrAhead   uint8
	// Thread says where the thread state is; it is used from 3.13 on.
	Thread ThreadState
}

// A ThreadState says where the thread state is: in Base, or on the stack at Base plus Disp.
type ThreadState struct {
	Known  bool
	Memory bool
	Base   Register
	Disp   int32
}

// A Table is all that a probe needs to know of one build.
type Table struct {
	Sites []Site
	// FrameCode is the frame's offset of the code object; CodeTag are the bits to clear in it.
	FrameCode uint32
	CodeTag   uint64
	// ResumeCheck is the opcode that falls back into RESUME's handler after it was counted, or 0.
	ResumeCheck uint8
	// Redispatch says that a RESUME whose code object has another instrumentation version than
	// the thread will run again, unless the thread is within a trace function.
	Redispatch                              bool
	EvalBreaker, ThreadTracing, CodeVersion uint32
}

// Find reads an interpreter binary: the file that holds _PyEval_EvalFrameDefault.
func Find(path string, major, minor int) (*Table, error) {
	known, ok := releases[[2]int{major, minor}]
	if !ok {
		return nil, fmt.Errorf("%w: CPython %d.%d; 3.11, 3.13 and 3.14 are known", ErrUnknownBuild, major, minor)
	}
	img, err := openImage(path)
	if err != nil {
		return nil, err
	}
	defer img.file.Close()
	handlers, err := img.findDispatch(known.undefined)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	img.handlers = append([]uint64(nil), handlers[:]...)
	slices.Sort(img.handlers)
	table := &Table{
		FrameCode: known.frameCode, CodeTag: known.codeTag, ResumeCheck: known.resumeCheck,
		Redispatch: known.redispatch, EvalBreaker: evalBreaker, ThreadTracing: threadTracing, CodeVersion: codeVersion,
	}
	var blocks []block
	for _, opcode := range known.resumes {
		copies, err := img.promoted(handlers[opcode])
		if err != nil {
			return nil, fmt.Errorf("%s: handler of opcode %d: %w", path, opcode, err)
		}
		for _, start := range append(copies, handlers[opcode]) {
			b, err := img.readBlock(start, known.redispatch)
			if err != nil {
				return nil, fmt.Errorf("%s: handler of opcode %d: %w", path, opcode, err)
			}
			b.site.Opcode = opcode
			blocks = append(blocks, b)
		}
	}
	entered := img.branchedInto(blocks)
	for i, b := range blocks {
		site, err := img.place(b, entered[i])
		if err != nil {
			return nil, fmt.Errorf("%s: handler of opcode %d: %w", path, b.site.Opcode, err)
		}
		table.Sites = append(table.Sites, site)
	}
	return table, nil
}

// A block is a handler from its start up to its first branch.
type block struct {
	site   Site
	store  uint64 // where the instruction pointer is stored into the frame
	branch uint64 // where the block ends
	// emulable says that the kernel emulates the branch, and that the registers hold there what
	// they held at the store.
	emulable bool
}

// place chooses where in a block the probe goes: at the branch, if only the block leads there.
func (img *image) place(b block, entered bool) (Site, error) {
	site, at := b.site, b.branch
	site.Emulated = b.emulable && !entered
	if !site.Emulated {
		at, site.InstrAhead = b.store, 0
	}
	offset, ok := img.fileOffset(at)
	if !ok {
		return Site{}, fmt.Errorf("%w: %#x is not in the file", ErrUnknownBuild, at)
	}
	site.Offset = offset
	return site, nil
}

// maxScan is how many instructions of a handler are looked at.
const maxScan = 24

// readBlock disassembles a handler up to its first branch. The store of the instruction pointer into
// the frame tells both registers.
func (img *image) readBlock(handler uint64, needThread bool) (block, error) {
	code := img.at(handler)
	var site Site
	var store uint64 // where the instruction pointer is stored; 0 until seen
	intact := true   // both registers still hold what they held at the store
	var thread threadFinder
	pc := handler
	for range maxScan {
		in, err := x86asm.Decode(code, 64)
		if err != nil {
			return block{}, fmt.Errorf("%w: at %#x: %w", ErrUnknownBuild, pc, err)
		}
		if branches(in.Op) {
			if store == 0 {
				return block{}, fmt.Errorf("%w: it branches at %#x before it stores the instruction pointer", ErrUnknownBuild, pc)
			}
			site.Thread = thread.location()
			if needThread && !site.Thread.Known {
				return block{}, fmt.Errorf("%w: it does not show where the thread state is", ErrUnknownBuild)
			}
			emulable := in.Op != x86asm.CALL && in.Op != x86asm.RET && relative(in) && intact && thread.usableAtEnd()
			return block{site, store, pc, emulable}, nil
		}
		frame, instr, isStore := storesInstr(in)
		switch {
		case store == 0 && isStore:
			store, site.Frame, site.Instr = pc, frame, instr
		case store != 0 && advances(in, site.Instr):
			site.InstrAhead += 2
		case store != 0:
			if written, any := writes(in); any && (written == site.Frame || written == site.Instr) {
				intact = false
			}
		}
		thread.see(in)
		code, pc = code[in.Len:], pc+uint64(in.Len)
	}
	return block{}, fmt.Errorf("%w: no branch in its first %d instructions", ErrUnknownBuild, maxScan)
}

// A threadFinder follows where the thread state is. A handler shows it by reading eval_breaker or
// tracing; the pointer itself was in a register all along, or is loaded from the stack just before.
type threadFinder struct {
	found   ThreadState
	stack   [16]ThreadState // what each register was last loaded with from the stack
	pushed  bool            // the stack pointer moved within the handler
	written [16]bool        // since the handler's start
	stale   bool            // found is a register that was overwritten after it showed
}

func (t *threadFinder) see(in x86asm.Inst) {
	if in.Op == x86asm.PUSH || in.Op == x86asm.POP {
		t.pushed = true
	}
	if in.Op == x86asm.SUB || in.Op == x86asm.ADD {
		if r, ok := register(in.Args[0]); ok && r == stackPointer {
			t.pushed = true
		}
	}
	if base, ok := readsThread(in); ok && !t.found.Known {
		switch {
		case t.stack[base].Known:
			t.found = t.stack[base]
		case !t.written[base]:
			t.found = ThreadState{Known: true, Base: base}
		}
	}
	written, any := writes(in)
	if !any {
		return
	}
	t.written[written] = true
	t.stack[written] = ThreadState{}
	if t.found.Known && !t.found.Memory && t.found.Base == written {
		t.stale = true
	}
	if mem, ok := in.Args[1].(x86asm.Mem); ok && in.Op == x86asm.MOV && in.MemBytes == 8 {
		if base, ok := register(mem.Base); ok && base == stackPointer && mem.Index == 0 {
			t.stack[written] = ThreadState{Known: true, Memory: true, Base: stackPointer, Disp: int32(mem.Disp)}
		}
	}
}

// usableAtEnd reports whether the location holds at the branch.
func (t *threadFinder) usableAtEnd() bool { return !t.stale }

// location is where the thread state is, at the store and, if usableAtEnd, at the branch.
func (t *threadFinder) location() ThreadState {
	if t.found.Memory && t.pushed {
		return ThreadState{} // the displacement is not the same all through the handler
	}
	return t.found
}

const stackPointer Register = 4

// readsThread recognises a read of eval_breaker (8 bytes) or tracing (4 bytes).
func readsThread(in x86asm.Inst) (Register, bool) {
	for _, arg := range in.Args {
		mem, ok := arg.(x86asm.Mem)
		if !ok || mem.Index != 0 {
			continue
		}
		base, ok := register(mem.Base)
		if !ok || base == stackPointer {
			continue
		}
		if (in.Op == x86asm.MOV || in.Op == x86asm.CMP) &&
			(mem.Disp == evalBreaker && in.MemBytes == 8 || mem.Disp == threadTracing && in.MemBytes == 4) {
			return base, true
		}
	}
	return 0, false
}

// storesInstr recognises `mov REG, 0x38(FRAME)`.
func storesInstr(in x86asm.Inst) (frame, instr Register, ok bool) {
	mem, isMem := in.Args[0].(x86asm.Mem)
	if in.Op != x86asm.MOV || !isMem || mem.Disp != frameInstr || mem.Index != 0 || in.MemBytes != 8 {
		return 0, 0, false
	}
	frame, okFrame := register(mem.Base)
	instr, okInstr := register(in.Args[1])
	return frame, instr, okFrame && okInstr && frame != stackPointer
}

// advances recognises `add $2, INSTR`.
func advances(in x86asm.Inst, instr Register) bool {
	r, ok := register(in.Args[0])
	imm, isImm := in.Args[1].(x86asm.Imm)
	return in.Op == x86asm.ADD && ok && r == instr && isImm && imm == 2
}

// writes returns the register that an instruction writes. Instructions that write none, or only
// memory, have none.
func writes(in x86asm.Inst) (Register, bool) {
	if in.Op == x86asm.CMP || in.Op == x86asm.TEST || in.Op == x86asm.PUSH || in.Op == x86asm.NOP {
		return 0, false
	}
	return register(in.Args[0])
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

func relative(in x86asm.Inst) bool {
	_, ok := in.Args[0].(x86asm.Rel)
	return ok
}

// branchedInto reports of each block whether any branch may land after its store, which would bring
// another instruction's execution past a probe at its end. It looks at every byte of the code as a
// possible branch, and drops those that lie within an instruction: a false alarm only costs speed.
func (img *image) branchedInto(blocks []block) []bool {
	entered := make([]bool, len(blocks))
	inside := map[uint64]int{} // addresses after a store, up to the branch, and whose block they are in
	low, high := ^uint64(0), uint64(0)
	for i, b := range blocks {
		for addr := b.store + 1; addr <= b.branch; addr++ {
			inside[addr] = i
		}
		low, high = min(low, b.store), max(high, b.branch)
	}
	for _, start := range img.handlers {
		if i, ok := inside[start]; ok {
			entered[i] = true
		}
	}
	for _, s := range img.code {
		for i := 0; i+6 <= len(s.bytes); i++ {
			b, pc := s.bytes[i], s.addr+uint64(i)
			var target uint64
			switch {
			case b == 0xe9:
				target = pc + 5 + uint64(int64(int32(binary.LittleEndian.Uint32(s.bytes[i+1:]))))
			case b == 0x0f && s.bytes[i+1]&0xf0 == 0x80:
				target = pc + 6 + uint64(int64(int32(binary.LittleEndian.Uint32(s.bytes[i+2:]))))
			case b == 0xeb || b&0xf0 == 0x70:
				target = pc + 2 + uint64(int64(int8(s.bytes[i+1])))
			default:
				continue
			}
			if target <= low || target > high {
				continue
			}
			if n, ok := inside[target]; ok && !entered[n] {
				entered[n] = img.maybeInstruction(pc)
			}
		}
	}
	return entered
}

// maxSweep bounds how far from a known instruction another is looked for, in bytes.
const maxSweep = 64 << 10

// maybeInstruction reports whether an instruction may begin at pc: whether disassembling from the
// handler before it arrives there. Where that cannot be told it says yes.
func (img *image) maybeInstruction(pc uint64) bool {
	after, isHandler := slices.BinarySearch(img.handlers, pc)
	if isHandler || after == 0 || pc-img.handlers[after-1] > maxSweep {
		return true
	}
	at := img.handlers[after-1]
	for code := img.at(at); at < pc; {
		in, err := x86asm.Decode(code, 64)
		if err != nil {
			return true
		}
		code, at = code[in.Len:], at+uint64(in.Len)
	}
	return at == pc
}

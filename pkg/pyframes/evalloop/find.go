package evalloop

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"slices"
)

// A Location says where a value is when a probe is hit: in the register Base, or in memory at Base
// plus Disp. Add is what the value found there lacks.
type Location struct {
	Base   Register
	Memory bool
	Disp   int32
	Add    int32
}

// A Site is a place to put a uprobe at, and how to read the frame there.
type Site struct {
	Offset uint64 // in the file
	// Opcode is the variant of RESUME whose handler it is. It is 0 at the eval loop's entry.
	Opcode uint8
	// Specialised says that only code objects that ran before come by.
	Specialised bool
	// Emulated says that the kernel emulates the probed instruction, which costs a twentieth of
	// single-stepping it.
	Emulated bool
	// Frame is the frame, Instr the address of the RESUME, Thread the thread state. At the entry
	// there are no instruction and no thread; Throw is the argument throwflag.
	Frame, Instr, Thread Location
	Throw                Register
}

// A Table is all that a probe needs to know of one build.
type Table struct {
	Sites []Site
	// Entry says that the only site is the eval loop's entry (up to 3.10): there a frame starts
	// when its int32 f_lasti, at FrameLastI, is -1 and nothing is thrown into it.
	Entry      bool
	FrameLastI uint32
	// FrameCode is the frame's offset of the code object; CodeTag are the bits to clear in it.
	FrameCode uint32
	CodeTag   uint64
	// LocationBits are the bits of RESUME's argument that are 0 at a start.
	LocationBits uint8
	// Checks are the opcodes that fall back into RESUME's handler after they were counted.
	Checks []uint8
	// Version is not nil where a RESUME may run again for one start (from 3.12 on).
	Version *Version
	// Watchable says that reading a RESUME's opcode can be told from running it (3.12), by the frame:
	// Dispatch is where that is once an instruction is dispatched, FrameInstr its offset of the
	// instruction before, which becomes the dispatched one only in its handler.
	Watchable  bool
	Dispatch   Location
	FrameInstr uint32
}

// Find reads an interpreter binary: the file that holds _PyEval_EvalFrameDefault.
func Find(path string, major, minor int) (*Table, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnknownBuild, err)
	}
	defer file.Close()
	return find(file, path, major, minor)
}

func find(r io.ReaderAt, path string, major, minor int) (*Table, error) {
	known, ok := releases[[2]int{major, minor}]
	if !ok {
		return nil, fmt.Errorf("%w: CPython %d.%d; 3.6 to 3.15 are known", ErrUnknownBuild, major, minor)
	}
	img, err := readImage(r, path)
	if err != nil {
		return nil, err
	}
	table := &Table{
		FrameCode: known.frameCode, CodeTag: known.codeTag, LocationBits: known.location,
		Checks: known.checks, Version: known.version, FrameInstr: frameInstr, Watchable: known.watchable,
	}
	if known.entry != nil {
		err = img.findEntry(table, known.entry)
	} else {
		err = img.findResumes(table, &known)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return table, nil
}

// findEntry puts the one site at the start of _PyEval_EvalFrameDefault. GCC and clang never clone or
// inline a function whose labels' addresses are taken, so that nothing gets in elsewhere.
func (img *image) findEntry(table *Table, entry *entry) error {
	symbols, err := img.file.DynamicSymbols()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnknownBuild, err)
	}
	at := slices.IndexFunc(symbols, func(s elf.Symbol) bool {
		return s.Name == "_PyEval_EvalFrameDefault" && s.Section != elf.SHN_UNDEF && elf.ST_TYPE(s.Info) == elf.STT_FUNC
	})
	if at < 0 {
		return fmt.Errorf("%w: it exports no function _PyEval_EvalFrameDefault", ErrUnknownBuild)
	}
	addr := symbols[at].Value
	in, err := decode(img.at(addr))
	if err == nil && bytes.HasPrefix(img.at(addr), endbr64) {
		// Nothing but the function's start leads to what follows its landing mark.
		addr += uint64(in.Len)
		in, err = decode(img.at(addr))
	}
	if err != nil {
		return fmt.Errorf("%w: _PyEval_EvalFrameDefault at %#x: %w", ErrUnknownBuild, addr, err)
	}
	offset, ok := img.fileOffset(addr)
	if !ok {
		return fmt.Errorf("%w: _PyEval_EvalFrameDefault is not in the file", ErrUnknownBuild)
	}
	table.Entry, table.FrameCode, table.FrameLastI = true, entry.code, entry.lastI
	table.Sites = []Site{{
		Offset: offset, Emulated: emulated(in), Frame: Location{Base: entry.frame}, Throw: entry.throw,
	}}
	return nil
}

// findResumes puts sites at the handlers of RESUME's variants, and at every copy of one.
func (img *image) findResumes(table *Table, known *release) error {
	handlers, err := img.findDispatch(known.undefined)
	if err != nil {
		return err
	}
	img.handlers = append([]uint64(nil), handlers[:]...)
	slices.Sort(img.handlers)
	var blocks []*block
	var all roles
	shown := known.version == nil
	for _, opcode := range slices.Concat(known.resumes, known.specialised) {
		copies, err := img.promoted(handlers[opcode])
		if err != nil {
			return fmt.Errorf("handler of opcode %d: %w", opcode, err)
		}
		for _, start := range append(copies, handlers[opcode]) {
			b, err := img.readBlock(start, opcode, known)
			if err != nil {
				return fmt.Errorf("handler of opcode %d: %w", opcode, err)
			}
			blocks = append(blocks, b)
			all.merge(b.roles)
			shown = shown || b.version
		}
	}
	switch {
	case !all.frame.known:
		return fmt.Errorf("%w: no handler of RESUME stores the instruction pointer into a frame", ErrUnknownBuild)
	case known.version != nil && !all.thread.known:
		return fmt.Errorf("%w: no handler of RESUME shows where the thread state is", ErrUnknownBuild)
	case !shown:
		return fmt.Errorf("%w: no handler of RESUME compares a code object's version", ErrUnknownBuild)
	}
	entry := entryState()
	var ok bool
	if table.Dispatch, ok = entry.locate(all.frame); !ok {
		return fmt.Errorf("%w: the frame is not where it can be read", ErrUnknownBuild)
	}
	checks := make(map[uint64]*block, len(blocks))
	for _, b := range blocks {
		b.roles.merge(all)
		if slices.Contains(known.checks, b.opcode) {
			checks[b.end().addr] = b
		}
	}
	entered := img.branchedInto(blocks, checks, known.resumes[0])
	for i, b := range blocks {
		site, err := img.place(b, entered[i], known.version != nil)
		if err != nil {
			return fmt.Errorf("handler of opcode %d: %w", b.opcode, err)
		}
		site.Specialised = slices.Contains(known.specialised, b.opcode)
		table.Sites = append(table.Sites, site)
	}
	return nil
}

// place puts the probe of a block at the branch that ends it, if nothing but the block leads there
// and all that the probe reads is still to be had there; else where the block starts.
func (img *image) place(b *block, entered, needThread bool) (Site, error) {
	for _, at := range []step{b.end(), b.steps[0]} {
		site := Site{Opcode: b.opcode, Emulated: at.addr == b.end().addr && emulated(b.branch)}
		if at.addr != b.start && (entered || !site.Emulated) {
			continue
		}
		var ok [3]bool
		site.Frame, ok[0] = at.state.locate(b.roles.frame)
		site.Instr, ok[1] = at.state.locate(b.roles.instr)
		site.Thread, ok[2] = at.state.locate(b.roles.thread)
		if !ok[0] || !ok[1] || needThread && !ok[2] {
			continue
		}
		if site.Offset, ok[0] = img.fileOffset(at.addr); !ok[0] {
			return Site{}, fmt.Errorf("%w: %#x is not in the file", ErrUnknownBuild, at.addr)
		}
		return site, nil
	}
	return Site{}, fmt.Errorf("%w: it does not keep the frame, the instruction and the thread where they can be read", ErrUnknownBuild)
}

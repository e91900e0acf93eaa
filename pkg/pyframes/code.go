package pyframes

import "fmt"

// Code is a code object in a process, as it was when it was read.
type Code struct {
	Addr             uint64 // of the PyCodeObject; reused by CPython after a free
	Name             string // co_name
	NameAddr         uint64 // of the str that co_name is
	QualName         string // co_qualname
	Filename         string // co_filename, as the process's imports gave it
	FirstLine        int    // co_firstlineno; of the first decorator, where there is one
	Flags            uint32 // co_flags
	Instructions     uint64 // address of the first instruction, co_code_adaptive
	InstructionCount int    // in units of two bytes, inline caches included
}

// SameAs reports whether two readings are of the same code object: the address alone
// does not tell, because CPython reuses it.
func (c Code) SameAs(other Code) bool {
	return c.Addr == other.Addr && c.FirstLine == other.FirstLine && c.QualName == other.QualName && c.Filename == other.Filename
}

// maxInstructions bounds co_code, in units of two bytes.
const maxInstructions = 1 << 26

func (im *image) code(addr uint64) (Code, error) {
	c := Code{Addr: addr}
	if err := im.mustBe(addr, "PyCode_Type"); err != nil {
		return c, err
	}
	for _, field := range []struct {
		offset uint64
		text   *string
	}{{im.layout.codeName, &c.Name}, {im.layout.codeQualName, &c.QualName}, {im.layout.codeFilename, &c.Filename}} {
		object, err := im.word(addr, field.offset)
		if err != nil {
			return c, err
		}
		if *field.text, err = im.str(object); err != nil {
			return c, err
		}
	}
	name, err := im.word(addr, im.layout.codeName)
	if err != nil {
		return c, err
	}
	c.NameAddr = name
	line, err := im.uint32(addr, im.layout.codeFirstLine)
	if err != nil {
		return c, err
	}
	c.FirstLine = int(int32(line))
	if c.Flags, err = im.uint32(addr, codeFlags); err != nil {
		return c, err
	}
	size, err := im.word(addr, varSize)
	if err != nil {
		return c, err
	}
	if size == 0 || size > maxInstructions {
		return c, fmt.Errorf("%w: code object at %#x has %d instructions", ErrCorrupt, addr, size)
	}
	c.Instructions, c.InstructionCount = addr+im.layout.codeAdaptive, int(size)
	return c, nil
}

// ReadCode reads the code object at an address.
func (p *Process) ReadCode(addr uint64) (Code, error) {
	var c Code
	err := p.answer(func(im *image) (err error) {
		c, err = im.code(addr)
		return err
	})
	return c, err
}

// Evidence is what CPython itself left behind in a code object by running it.
type Evidence struct {
	// Executed is true when the body began to run at least once, whenever that was.
	// Creating a generator or coroutine is not running it.
	Executed bool
	Detail   string // what was looked at, "co_warmup is -8"
	Misses   string // which executions leave no mark on this version, "" when none are known
}

// Evidence reads the marks of execution of a code object that [Process.Resolve] found.
//
// 3.11: co_warmup starts at -8 and RESUME counts it up (Python/specialize.c,
// Include/internal/pycore_code.h). 3.13 and 3.14: RESUME turns itself into RESUME_CHECK,
// or with tracing or monitoring into INSTRUMENTED_RESUME together with a non-zero
// _co_instrumentation_version (Python/bytecodes.c, Python/instrumentation.c).
// sys.monitoring.set_local_events instruments code without running it: as long as such
// events are set and nothing else proves a run, the answer is [ErrAmbiguousEvidence].
func (p *Process) Evidence(c Code) (Evidence, error) {
	var e Evidence
	err := p.answer(func(im *image) (err error) {
		now, err := im.code(c.Addr)
		if err != nil {
			return err
		}
		if !now.SameAs(c) {
			return fmt.Errorf("%w: the code object of %s at %#x is gone; resolve it again", ErrTorn, c.QualName, c.Addr)
		}
		e, err = im.evidence(now)
		return err
	})
	if err != nil {
		return Evidence{}, err
	}
	return e, nil
}

const missesInCallbacks = "calls made from inside a trace, profile or monitoring callback"

func (im *image) evidence(c Code) (Evidence, error) {
	l := im.layout
	if l.codeWarmup != 0 {
		raw, err := im.uint32(c.Addr, l.codeWarmup)
		if err != nil {
			return Evidence{}, err
		}
		const initial = -8 // QUICKENING_INITIAL_WARMUP_VALUE
		warmup := int16(raw)
		if warmup < initial || warmup > 0 {
			return Evidence{}, fmt.Errorf("%w: co_warmup of %s is %d", ErrCorrupt, c.QualName, warmup)
		}
		detail := fmt.Sprintf("co_warmup is %d", warmup)
		if warmup != initial {
			detail = fmt.Sprintf("co_warmup left %d and is %d", initial, warmup)
		}
		return Evidence{Executed: warmup != initial, Detail: detail}, nil
	}
	op, at, err := im.resume(c)
	if err != nil {
		return Evidence{}, err
	}
	version, err := im.word(c.Addr, l.codeInstrumentation)
	if err != nil {
		return Evidence{}, err
	}
	e := Evidence{Misses: missesInCallbacks}
	switch {
	case op == l.opResumeCheck:
		e.Executed = true
		e.Detail = fmt.Sprintf("RESUME at instruction %d has become RESUME_CHECK", at)
		return e, nil
	case op == l.opInstrumentedResume:
		e.Executed = true
		e.Detail = fmt.Sprintf("RESUME at instruction %d has become INSTRUMENTED_RESUME", at)
	case version != 0:
		e.Executed = true
		e.Detail = fmt.Sprintf("_co_instrumentation_version is %#x", version)
	default:
		e.Detail = fmt.Sprintf("RESUME at instruction %d is as compiled", at)
		return e, nil
	}
	local, err := im.localEvents(c)
	if err != nil {
		return Evidence{}, err
	}
	if local {
		return Evidence{}, fmt.Errorf("%w: %s has local monitoring events, which instrument code that never ran", ErrAmbiguousEvidence, c.QualName)
	}
	return e, nil
}

// localEvents reports whether sys.monitoring.set_local_events is in force for a code
// object: _PyCoMonitoringData starts with one byte per local event, ten in 3.13 and
// 3.14 at least (Include/cpython/code.h).
func (im *image) localEvents(c Code) (bool, error) {
	data, err := im.word(c.Addr, im.layout.codeMonitoring)
	if err != nil || data == 0 {
		return false, err
	}
	var tools [10]byte
	if err := im.mem.readAt(tools[:], data); err != nil {
		return false, err
	}
	return tools != [10]byte{}, nil
}

// maxPrologue bounds the walk to the first RESUME: one MAKE_CELL per cell variable
// comes before it.
const maxPrologue = 4096

// resume returns the opcode at the first RESUME as it is now, and its index. Closures and
// generators have other instructions before it.
func (im *image) resume(c Code) (op byte, at int, err error) {
	l := im.layout
	raw := make([]byte, 2*min(c.InstructionCount, maxPrologue))
	if err := im.mem.readAt(raw, c.Instructions); err != nil {
		return 0, 0, err
	}
	for ; len(raw) >= 2; raw, at = raw[2:], at+1 {
		op = raw[0]
		// In 3.11 opInstrumentedResume is 0, which is CACHE there: never before RESUME.
		if op == l.opResume || op == l.opResumeCheck || op == l.opInstrumentedResume && op != 0 {
			return op, at, nil
		}
		switch op {
		case l.opCopyFreeVars, l.opMakeCell, l.opReturnGenerator, l.opPopTop, l.opNop, l.opExtendedArg:
			continue
		}
		return 0, 0, fmt.Errorf("%w: instruction %d of %s is opcode %d, before any RESUME", ErrCorrupt, at, c.QualName, op)
	}
	return 0, 0, fmt.Errorf("%w: %s has no RESUME in its first %d instructions", ErrCorrupt, c.QualName, at)
}

// CodeIdentity returns where in a code object co_name and co_firstlineno are. With its address
// they tell a code object from the one that takes its place after a free.
func (p *Process) CodeIdentity() (name, firstLine uint32) {
	return uint32(p.image.layout.codeName), uint32(p.image.layout.codeFirstLine)
}

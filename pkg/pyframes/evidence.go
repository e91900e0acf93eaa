package pyframes

import (
	"encoding/binary"
	"fmt"
)

// Evidence is what CPython itself left behind in a code object by running it. It claims no run
// that was not. What it may miss is in Misses.
type Evidence struct {
	// Executed is true when the body began to run at least once, whenever that was.
	// Creating a generator or coroutine is not running it.
	Executed bool
	// Entries is how often the body was entered, by a call or by resuming it, where the
	// version keeps count (3.8 to 3.11); 0 says nothing when Executed. AtLeast says that the
	// version counts no further.
	Entries uint64
	AtLeast bool
	Detail  string // what was looked at, "co_warmup is -8"
	Misses  string // which executions leave no mark on this version, "" when none are known
	// Weak says that an ordinary execution is among the Misses, so that the absence of a mark means
	// nothing: on 3.12, and while a call goes on, 3.6 and 3.7.
	Weak bool
}

// Evidence reads the marks of execution of a code object that [Process.Resolve] found.
//
//   - 3.6, 3.7: a frame that finished is kept for the next call, in co_zombieframe, with the
//     last instruction that it ran (Objects/frameobject.c).
//   - 3.8 to 3.10: co_opcache_flag counts entries up to 1024 (Python/ceval.c). A generator that
//     is closed before it started counts too, so there the kept frame decides.
//   - 3.11: co_warmup starts at -8 and RESUME counts it up (Python/specialize.c,
//     Include/internal/pycore_code.h).
//   - 3.12: instructions that specialise count in their inline cache, which starts at 17, or
//     are replaced (Python/specialize.c).
//   - 3.13 to 3.15: RESUME turns itself into RESUME_CHECK, or with tracing or monitoring into
//     INSTRUMENTED_RESUME together with a non-zero _co_instrumentation_version
//     (Python/bytecodes.c, Python/instrumentation.c).
//
// sys.monitoring.set_local_events instruments code without running it, from 3.12 on: when that
// alone may have left a mark, the answer is [ErrAmbiguousEvidence].
func (p *Process) Evidence(c Code) (Evidence, error) {
	var e Evidence
	err := p.answer(func(im *image) (err error) {
		now, err := im.codeStill(c)
		if err != nil {
			return err
		}
		now.QualName = c.QualName
		e, err = im.evidence(now)
		if !im.isStill(now) {
			return gone(c)
		}
		return err
	})
	if err != nil {
		return Evidence{}, err
	}
	return e, nil
}

// codeStill reads a code object anew, which must be the one that was read before.
func (im *image) codeStill(c Code) (Code, error) {
	now, err := im.code(c.Addr)
	if err == nil && !now.SameAs(c) {
		err = gone(c)
	}
	return now, err
}

func gone(c Code) error {
	return fmt.Errorf("%w: the code object of %s at %#x is gone; resolve it again", ErrTorn, c.QualName, c.Addr)
}

// ResumeAddress returns the address of the instruction that every start of a function executes: its
// first RESUME, which 3.11 brought.
func (p *Process) ResumeAddress(c Code) (uint64, error) {
	if p.in.Version.Minor < 11 {
		return 0, fmt.Errorf("%w: CPython %s has no RESUME", ErrUnsupportedBuild, p.in.Version)
	}
	var addr uint64
	err := p.answer(func(im *image) error {
		now, err := im.codeStill(c)
		if err != nil {
			return err
		}
		_, at, err := im.resume(now)
		addr = now.Instructions + 2*uint64(at)
		return err
	})
	return addr, err
}

func (im *image) evidence(c Code) (Evidence, error) {
	switch l := im.layout; {
	case l.codeZombie != 0:
		return im.frameEvidence(c)
	case l.codeWarmup != 0:
		return im.warmupEvidence(c)
	case l.caches != nil:
		return im.cacheEvidence(c)
	}
	return im.resumeEvidence(c)
}

// frameEvidence is that of 3.6 to 3.10.
func (im *image) frameEvidence(c Code) (Evidence, error) {
	l := im.layout
	var e Evidence
	if l.codeOpcacheFlag != 0 {
		const most = 1024 // OPCACHE_MIN_RUNS
		flag, err := im.uint32(c.Addr, l.codeOpcacheFlag)
		if err != nil {
			return e, err
		}
		if flag > most {
			return e, fmt.Errorf("%w: co_opcache_flag of %s is %d", ErrCorrupt, c.QualName, flag)
		}
		e = Evidence{Entries: uint64(flag), AtLeast: flag == most, Executed: flag > 0, Detail: fmt.Sprintf("co_opcache_flag is %d", flag)}
		if flag == 0 || !c.suspends() {
			return e, nil
		}
	} else {
		e.Misses, e.Weak = "a first call that has not finished leaves none", true
	}
	frame, err := im.word(c.Addr, l.codeZombie)
	if err != nil {
		return e, err
	}
	last := int32(-1)
	if frame != 0 {
		code, err := im.word(frame, l.frameCode)
		if err != nil {
			return e, err
		}
		if code != c.Addr {
			return e, fmt.Errorf("%w: the frame kept for %s belongs to the code object at %#x", ErrCorrupt, c.QualName, code)
		}
		raw, err := im.uint32(frame, l.frameLastInstr)
		if err != nil {
			return e, err
		}
		last = int32(raw)
	}
	switch {
	case last >= 0:
		e.Executed = true
		e.Detail = fmt.Sprintf("the frame in co_zombieframe last ran the instruction at %d", last)
		return e, nil
	case l.codeOpcacheFlag != 0:
		return Evidence{}, fmt.Errorf("%w: co_opcache_flag of %s is %d, which closing a generator or coroutine that never started also counts", ErrAmbiguousEvidence, c.QualName, e.Entries)
	case frame != 0:
		e.Detail = "the frame in co_zombieframe has run no instruction"
	default:
		e.Detail = "co_zombieframe is NULL"
	}
	return e, nil
}

// warmupEvidence is that of 3.11.
func (im *image) warmupEvidence(c Code) (Evidence, error) {
	raw, err := im.uint32(c.Addr, im.layout.codeWarmup)
	if err != nil {
		return Evidence{}, err
	}
	const initial = -8 // QUICKENING_INITIAL_WARMUP_VALUE
	warmup := int16(raw)
	if warmup < initial || warmup > 0 {
		return Evidence{}, fmt.Errorf("%w: co_warmup of %s is %d", ErrCorrupt, c.QualName, warmup)
	}
	if warmup == initial {
		return Evidence{Detail: fmt.Sprintf("co_warmup is %d", warmup)}, nil
	}
	e := Evidence{Executed: true, Detail: fmt.Sprintf("co_warmup left %d and is %d", initial, warmup)}
	loops, err := im.hasBackwardJump(c)
	if err == nil && !loops {
		e.Entries, e.AtLeast = uint64(warmup-initial), warmup == 0
	}
	return e, err
}

// hasBackwardJump reports whether a code object of 3.11 has a jump that counts co_warmup up as
// entries do.
func (im *image) hasBackwardJump(c Code) (bool, error) {
	const jumpBackward, jumpBackwardQuick, maxJumps = 140, 41, 1 << 14
	if c.InstructionCount > maxJumps {
		return true, nil
	}
	raw := make([]byte, 2*c.InstructionCount)
	if err := im.mem.readAt(raw, c.Instructions); err != nil {
		return false, err
	}
	for ; len(raw) >= 2; raw = raw[2:] {
		// An inline cache may look like one, which only withholds a count.
		if raw[0] == jumpBackward || raw[0] == jumpBackwardQuick {
			return true, nil
		}
	}
	return false, nil
}

// A cacheTable says of each opcode how many inline cache entries follow it, and whether it only
// comes to be by running.
type cacheTable struct {
	entries     [256]uint8
	specialised [256]bool
}

// cacheInitial is adaptive_counter_warmup() in Include/internal/pycore_code.h, 3.12.
const cacheInitial = 17

// caches312 is from Lib/opcode.py and Include/opcode.h of 3.12, which number the specialised
// forms; those of LOAD_CONST, LOAD_FAST and STORE_FAST are put in when the code object is made.
var caches312 = newCacheTable(map[byte]uint8{
	25: 1, 60: 1, 92: 1, 93: 1, 95: 4, 106: 9, 107: 1, 116: 4, 122: 1, 123: 1, 141: 1, 171: 3,
}, []opcodeRange{
	{6, 8, 1}, {10, 10, 1}, {13, 14, 1}, {16, 16, 1}, {18, 18, 1}, // BINARY_OP_
	{19, 22, 1},                                                     // BINARY_SUBSCR_
	{23, 24, 3}, {28, 29, 3}, {34, 34, 3}, {38, 48, 3}, {56, 56, 3}, // CALL_
	{57, 59, 1},                           // COMPARE_OP_
	{62, 65, 1},                           // FOR_ITER_
	{66, 67, 1},                           // LOAD_SUPER_ATTR_
	{70, 70, 9}, {72, 73, 9}, {76, 82, 9}, // LOAD_ATTR_
	{111, 112, 4},                               // LOAD_GLOBAL_
	{113, 113, 4}, {148, 148, 4}, {153, 153, 4}, // STORE_ATTR_
	{159, 160, 1}, {161, 161, 1}, {166, 167, 1}, {168, 168, 1}, // STORE_SUBSCR_, UNPACK_SEQUENCE_, SEND_GEN
})

type opcodeRange struct{ first, last, caches uint8 }

func newCacheTable(bases map[byte]uint8, specialised []opcodeRange) *cacheTable {
	var t cacheTable
	for op, n := range bases {
		t.entries[op] = n
	}
	for _, r := range specialised {
		for op := int(r.first); op <= int(r.last); op++ {
			t.entries[op], t.specialised[op] = r.caches, true
		}
	}
	return &t
}

// maxCaches bounds the instructions that are looked at for a mark.
const maxCaches = 1 << 15

// cacheEvidence is that of 3.12.
func (im *image) cacheEvidence(c Code) (Evidence, error) {
	l := im.layout
	raw := make([]byte, 2*min(c.InstructionCount, maxCaches))
	if err := im.mem.readAt(raw, c.Instructions); err != nil {
		return Evidence{}, err
	}
	op, resumeAt, err := im.resume(c)
	if err != nil {
		return Evidence{}, err
	}
	for at := resumeAt + 1; 2*at+4 <= len(raw); {
		op := raw[2*at]
		if op >= l.opInstrumented {
			break // what it stands for, and so its caches, is elsewhere
		}
		if l.caches.specialised[op] {
			return Evidence{Executed: true, Detail: fmt.Sprintf("instruction %d has been specialised into opcode %d", at, op)}, nil
		}
		if n := int(l.caches.entries[op]); n > 0 {
			if counter := binary.LittleEndian.Uint16(raw[2*at+2:]); counter != cacheInitial {
				return Evidence{Executed: true, Detail: fmt.Sprintf("the inline cache of instruction %d counts %d, not %d", at, counter, cacheInitial)}, nil
			}
			at += n
		}
		at++
	}
	e := Evidence{Misses: "runs that reach no instruction with an inline cache leave none", Weak: true}
	return im.monitoringEvidence(c, op, resumeAt, e)
}

const missesInCallbacks = "calls made from inside a trace, profile or monitoring callback leave none"

// resumeEvidence is that of 3.13 and newer.
func (im *image) resumeEvidence(c Code) (Evidence, error) {
	l := im.layout
	op, at, err := im.resume(c)
	if err != nil {
		return Evidence{}, err
	}
	e := Evidence{Misses: missesInCallbacks}
	switch {
	case op == l.opResumeCheck, l.opResumeCheckJIT != 0 && op == l.opResumeCheckJIT:
		e.Executed = true
		e.Detail = fmt.Sprintf("RESUME at instruction %d has become RESUME_CHECK", at)
		return e, nil
	case l.opEnterExecutor != 0 && op == l.opEnterExecutor:
		e.Executed = true
		e.Detail = fmt.Sprintf("RESUME at instruction %d has become a trace of the JIT", at)
		return e, nil
	}
	return im.monitoringEvidence(c, op, at, e)
}

// monitoringEvidence completes e by what tracing and monitoring left, for a code object whose
// first RESUME, at an instruction, is op now.
func (im *image) monitoringEvidence(c Code, op byte, at int, e Evidence) (Evidence, error) {
	l := im.layout
	version, err := im.word(c.Addr, l.codeInstrumentation)
	if err != nil {
		return Evidence{}, err
	}
	if op != l.opInstrumentedResume && version == 0 {
		e.Detail = fmt.Sprintf("RESUME at instruction %d is as compiled", at)
		return e, nil
	}
	local, err := im.localEvents(c)
	if err != nil {
		return Evidence{}, err
	}
	switch {
	case local:
		return Evidence{}, fmt.Errorf("%w: %s has local monitoring events, which instrument code that never ran", ErrAmbiguousEvidence, c.QualName)
	case op != l.opInstrumentedResume:
		return Evidence{}, fmt.Errorf("%w: _co_instrumentation_version of %s is %#x and its RESUME as compiled, which local monitoring events that were taken back also leave", ErrAmbiguousEvidence, c.QualName, version)
	}
	e.Executed = true
	e.Detail = fmt.Sprintf("RESUME at instruction %d has become INSTRUMENTED_RESUME", at)
	return e, nil
}

// localEvents reports whether sys.monitoring.set_local_events is in force for a code
// object: _PyCoMonitoringData starts with one byte per local event (Include/cpython/code.h, from
// 3.14 Include/internal/pycore_code.h).
func (im *image) localEvents(c Code) (bool, error) {
	data, err := im.word(c.Addr, im.layout.codeMonitoring)
	if err != nil || data == 0 {
		return false, err
	}
	tools := make([]byte, im.layout.localMonitors)
	if err := im.mem.readAt(tools, data); err != nil {
		return false, err
	}
	for _, t := range tools {
		if t != 0 {
			return true, nil
		}
	}
	return false, nil
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
		switch op = raw[0]; op {
		case 0: // CACHE, and what a version lacks
			return 0, 0, fmt.Errorf("%w: instruction %d of %s is a cache", ErrCorrupt, at, c.QualName)
		case l.opResume, l.opResumeCheck, l.opResumeCheckJIT, l.opEnterExecutor, l.opInstrumentedResume:
			return op, at, nil
		case l.opCopyFreeVars, l.opMakeCell, l.opReturnGenerator, l.opPopTop, l.opNop, l.opExtendedArg:
			continue
		}
		if l.opInstrumented != 0 && op >= l.opInstrumented {
			return 0, 0, fmt.Errorf("%w: the RESUME of %s is hidden by an instrumented instruction", ErrAmbiguousEvidence, c.QualName)
		}
		return 0, 0, fmt.Errorf("%w: instruction %d of %s is opcode %d, before any RESUME", ErrCorrupt, at, c.QualName, op)
	}
	return 0, 0, fmt.Errorf("%w: %s has no RESUME in its first %d instructions", ErrCorrupt, c.QualName, at)
}

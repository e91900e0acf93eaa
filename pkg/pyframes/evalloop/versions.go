package evalloop

import "errors"

// ErrUnknownBuild says that a binary is not of a build whose eval loop is known.
var ErrUnknownBuild = errors.New("the eval loop of this build is not known")

// A release is what is known of one CPython release line.
type release struct {
	// entry: up to 3.10 every start enters _PyEval_EvalFrameDefault anew. The rest is from 3.11 on.
	entry *entry

	// undefined are the opcodes that no instruction has: the table's holes.
	undefined []byte
	// resumes are the variants of RESUME that begin a function, each with a handler of its own:
	// first those that a code object may have before it ever ran, then the specialised ones.
	resumes, specialised []byte
	// checks are the specialised variants that fall back into RESUME's handler after they were
	// counted.
	checks []byte
	// location are the bits of RESUME's argument that say where it stands; 0 is the start.
	location byte
	// frameCode is the frame's offset of the code object, whose low codeTag bits are no address.
	frameCode uint32
	codeTag   uint64
	version   *Version
	// watchable: the frame holds prev_instr, not instr_ptr, and tracing does not read instructions.
	watchable bool
}

// An entry says how _PyEval_EvalFrameDefault is called.
type entry struct {
	frame, throw Register // the arguments f and throwflag
	code, lastI  uint32   // PyFrameObject.f_code, f_lasti
}

// A Version says how an instrumentation version is found. A RESUME whose code object has another
// one than the interpreter instruments the code object and runs again.
type Version struct {
	// Interpreter is the offset of PyThreadState.interp, where the version is in the interpreter
	// state; 0 where it is in the thread state.
	Interpreter uint32
	// Current is the offset of the version there; CodeVersion is its offset in the code object.
	Current, CodeVersion uint32
	// Events are the bits of it that are no version.
	Events uint64
	// Tracing is the offset of PyThreadState.tracing, a counter: while it is not 0, nothing is
	// instrumented. 0 where the version does not look at it.
	Tracing uint32
}

// threadOf returns the thread whose version or tracing counter is read, if that is what reading
// size bytes at disp past at is.
func (v *Version) threadOf(at value, disp int32, size int) value {
	switch {
	case size == 8 && disp == int32(v.Current) && v.Interpreter != 0:
		return at.loadedFrom(int32(v.Interpreter))
	case v.Interpreter == 0 && (size == 8 && disp == int32(v.Current) || size == 4 && disp == int32(v.Tracing)):
		return at
	}
	return value{}
}

// The entry's arguments and PyFrameObject are those of Include/internal/pycore_ceval.h (before 3.9
// Include/ceval.h), Include/frameobject.h and, from 3.9 on, Include/cpython/frameobject.h and 3.10's
// debug information.
//
// The opcodes are Lib/opcode.py's (3.11 and 3.12, with the specialised ones of
// Include/internal/pycore_opcode.h and Include/opcode.h) and Lib/_opcode_metadata.py's (from 3.13 on).
// The frame is _PyInterpreterFrame in Include/internal/pycore_frame.h (from 3.14 on
// pycore_interpframe_structs.h); what RESUME compares is in Python/bytecodes.c.
var releases = map[[2]int]release{
	{3, 6}:  {entry: &entry{frame: rdi, throw: rsi, code: 32, lastI: 120}},
	{3, 7}:  {entry: &entry{frame: rdi, throw: rsi, code: 32, lastI: 104}},
	{3, 8}:  {entry: &entry{frame: rdi, throw: rsi, code: 32, lastI: 104}},
	{3, 9}:  {entry: &entry{frame: rsi, throw: rdx, code: 32, lastI: 104}},
	{3, 10}: {entry: &entry{frame: rsi, throw: rdx, code: 32, lastI: 96}},
	{3, 11}: {
		undefined:   opcodes(181, 254),
		resumes:     []byte{151 /* RESUME */},
		specialised: []byte{150 /* RESUME_QUICK */},
		location:    3, frameCode: 32,
	},
	{3, 12}: {
		undefined: append(opcodes(169, 170), append(opcodes(177, 236), 255)...),
		resumes:   []byte{151 /* RESUME */, 240 /* INSTRUMENTED_RESUME */},
		location:  3, frameCode: 0, watchable: true,
		version: &Version{Interpreter: 16, Current: 48, CodeVersion: 160},
	},
	{3, 13}: {
		undefined:   append(opcodes(119, 148), append(opcodes(223, 235), 255)...),
		resumes:     []byte{149 /* RESUME */, 236 /* INSTRUMENTED_RESUME */},
		specialised: []byte{207 /* RESUME_CHECK */},
		checks:      []byte{207},
		location:    3, frameCode: 0,
		version: &Version{Current: 24, CodeVersion: 168, Events: 0xff, Tracing: 60},
	},
	{3, 14}: {
		undefined:   append(opcodes(121, 127), opcodes(212, 233)...),
		resumes:     []byte{128 /* RESUME */, 245 /* INSTRUMENTED_RESUME */},
		specialised: []byte{196 /* RESUME_CHECK */},
		checks:      []byte{196},
		location:    3, frameCode: 0, codeTag: 7,
		version: &Version{Current: 24, CodeVersion: 168, Events: 0xff, Tracing: 60},
	},
	{3, 15}: {
		undefined:   append(opcodes(120, 127), opcodes(219, 232)...),
		resumes:     []byte{128 /* RESUME */, 244 /* INSTRUMENTED_RESUME */},
		specialised: []byte{200 /* RESUME_CHECK */, 201 /* RESUME_CHECK_JIT */},
		checks:      []byte{200, 201},
		// A generator expression runs from RESUME 4 until it has its iterator; its body starts later.
		location: 7, frameCode: 0, codeTag: 7,
		version: &Version{Current: 24, CodeVersion: 168, Events: 0xff, Tracing: 64},
	},
}

func opcodes(first, last int) []byte {
	var list []byte
	for opcode := first; opcode <= last; opcode++ {
		list = append(list, byte(opcode))
	}
	return list
}

// frameInstr is the offset of _PyInterpreterFrame.prev_instr (3.11, 3.12), instr_ptr (from 3.13 on).
const frameInstr = 0x38

package evalloop

import "errors"

// ErrUnknownBuild says that a binary is not of a build whose eval loop is known.
var ErrUnknownBuild = errors.New("the eval loop of this build is not known")

// A release is what is known of one CPython release line.
type release struct {
	// undefined are the opcodes that no instruction has: the table's holes.
	undefined []byte
	// resumes are the variants of RESUME that begin a function, each with a handler of its own.
	resumes []byte
	// resumeCheck is the specialised variant that falls back into RESUME's handler, which then has
	// been counted; 0 where there is none.
	resumeCheck byte
	// frameCode is the frame's offset of the code object, whose low codeTag bits are no address.
	frameCode uint32
	codeTag   uint64
	// redispatch: RESUME instruments the code object and runs again when its version is old.
	redispatch bool
}

// The opcodes are Lib/opcode.py's (3.11, with the specialised ones as Tools/scripts/generate_opcode_h.py
// numbers them) and Lib/_opcode_metadata.py's (3.13, 3.14). The frame is _PyInterpreterFrame in
// Include/internal/pycore_frame.h (3.14: pycore_interpframe_structs.h).
var releases = map[[2]int]release{
	{3, 11}: {
		undefined: opcodes(181, 254),
		resumes:   []byte{151 /* RESUME */, 150 /* RESUME_QUICK */},
		frameCode: 32,
	},
	{3, 13}: {
		undefined:   append(opcodes(119, 148), append(opcodes(223, 235), 255)...),
		resumes:     []byte{149 /* RESUME */, 207 /* RESUME_CHECK */, 236 /* INSTRUMENTED_RESUME */},
		resumeCheck: 207, frameCode: 0, redispatch: true,
	},
	{3, 14}: {
		undefined:   append(opcodes(121, 127), opcodes(212, 233)...),
		resumes:     []byte{128 /* RESUME */, 196 /* RESUME_CHECK */, 245 /* INSTRUMENTED_RESUME */},
		resumeCheck: 196, frameCode: 0, codeTag: 7, redispatch: true,
	},
}

func opcodes(first, last int) []byte {
	var list []byte
	for opcode := first; opcode <= last; opcode++ {
		list = append(list, byte(opcode))
	}
	return list
}

// Offsets that the handlers themselves use; a handler that uses others is refused.
const (
	frameInstr    = 0x38 // _PyInterpreterFrame.prev_instr (3.11), instr_ptr (3.13, 3.14)
	evalBreaker   = 0x18 // PyThreadState.eval_breaker (3.13, 3.14)
	threadTracing = 0x3c // PyThreadState.tracing (3.13, 3.14)
	codeVersion   = 0xa8 // PyCodeObject._co_instrumentation_version (3.13, 3.14)
)

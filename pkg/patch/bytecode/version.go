package bytecode

import (
	"errors"
	"fmt"
)

// A Version is a CPython release line.
type Version struct{ Major, Minor int }

func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// Errors of the package. A returned error wraps one of them and says what was found.
var (
	ErrUnsupportedVersion = errors.New("no opcode table for this CPython")
	ErrUnknownShape       = errors.New("not the shape that CPython compiles")
)

// Magic is the number that .pyc files of v's final releases begin with, the first two bytes of
// importlib.util.MAGIC_NUMBER, little-endian, or 0 for a version without a table.
func (v Version) Magic() int {
	if ops := versions[v]; ops != nil {
		return ops.magic
	}
	return 0
}

// Supported returns nil for an interpreter whose bytecode the table of v is for, and otherwise an error
// that wraps ErrUnsupportedVersion. CPython changes the magic number with its bytecode, so that an alpha,
// a beta or a patched interpreter with an instruction set of its own is told by it.
func Supported(v Version, magic int) error {
	switch known := v.Magic(); known {
	case 0:
		return fmt.Errorf("%w: %s, supported are 3.8 to 3.15", ErrUnsupportedVersion, v)
	case magic:
		return nil
	default:
		return fmt.Errorf("%w: its bytecode has the magic number %d, that of CPython %s's final releases %d",
			ErrUnsupportedVersion, magic, v, known)
	}
}

// genExprStart is the argument of RESUME where CPython 3.15 creates the generator of a generator
// expression (Include/internal/pycore_opcode_utils.h, RESUME_AT_GEN_EXPR_START).
const genExprStart = 4

// opcodes is what the transform needs to know of one version's instruction set.
type opcodes struct {
	magic int
	// loadConst, unaryNegative and popTop are the prologue. None of them has caches.
	loadConst, unaryNegative, popTop byte
	extendedArg                      byte
	// The prologue stands after the first resume, or, before CPython 3.11, after a genStart that
	// comes first, and else at the start. 0 is no opcode.
	resume, genStart byte
	// before are the opcodes that may stand before the RESUME that starts the function, and how
	// much deeper each leaves the stack.
	before map[byte]int
	// pushNull, precall and call are what another instrumentation calls its own hook by, with constants,
	// before that RESUME: ddtrace's, in CPython 3.11 to 3.14. All 0 where none does.
	pushNull, precall, call byte
	// beforeGenExpr are those between the RESUME genExprStart of a generator expression, which makes the
	// iterator when the generator is created, and the RESUME that starts it.
	beforeGenExpr map[byte]int
	// byteJumps are jumps that count bytes, not code units.
	byteJumps bool
	jumps     [256]jump
	// caches is the number of inline cache units after each opcode.
	caches [256]byte
	// known are the opcodes that the compiler emits: none that are specialised, instrumented or internal.
	known [256]bool
}

// The numbers are those of Lib/opcode.py (to 3.12) and Include/opcode_ids.h (from 3.13 on); caches are
// Lib/opcode.py's _inline_cache_entries, and Lib/_opcode_metadata.py's from 3.13 on; magic numbers are
// those of Lib/importlib/_bootstrap_external.py, and from 3.14 on Include/internal/pycore_magic_number.h's.
var versions = map[Version]*opcodes{
	{3, 8}: {
		magic:     3413,
		loadConst: 100, unaryNegative: 11, popTop: 1, extendedArg: 144,
		byteJumps: true,
		jumps: jumps(map[jump][]byte{
			forward:  {93, 110, 122, 143, 154, 162},
			absolute: {111, 112, 113, 114, 115},
		}),
		known: ranges(1, 6, 9, 12, 15, 17, 19, 20, 22, 29, 50, 57, 59, 73, 75, 79, 81, 98, 100, 116, 122, 122,
			124, 126, 130, 133, 135, 138, 141, 158, 160, 163),
	},
	{3, 9}: {
		magic:     3425,
		loadConst: 100, unaryNegative: 11, popTop: 1, extendedArg: 144,
		byteJumps: true,
		jumps: jumps(map[jump][]byte{
			forward:  {93, 110, 122, 143, 154},
			absolute: {111, 112, 113, 114, 115, 121},
		}),
		known: ranges(1, 6, 9, 12, 15, 17, 19, 20, 22, 29, 48, 52, 54, 57, 59, 79, 82, 87, 89, 98, 100, 118,
			121, 122, 124, 126, 130, 133, 135, 138, 141, 148, 154, 157, 160, 165),
	},
	{3, 10}: {
		magic:     3439,
		loadConst: 100, unaryNegative: 11, popTop: 1, extendedArg: 144, genStart: 129,
		jumps: jumps(map[jump][]byte{
			forward:  {93, 110, 122, 143, 154},
			absolute: {111, 112, 113, 114, 115, 121},
		}),
		known: ranges(1, 6, 9, 12, 15, 17, 19, 20, 22, 34, 49, 52, 54, 57, 59, 79, 82, 87, 89, 119, 121, 122,
			124, 126, 129, 133, 135, 138, 141, 148, 152, 152, 154, 157, 160, 165),
	},
	{3, 11}: {
		magic:     3495,
		loadConst: 100, unaryNegative: 11, popTop: 1, extendedArg: 144, resume: 151,
		pushNull: 2, precall: 166, call: 171,
		before: before(149, 135, 75, 1),
		jumps: jumps(map[jump][]byte{
			forward:  {93, 110, 111, 112, 114, 115, 123, 128, 129},
			backward: {134, 140, 173, 174, 175, 176},
		}),
		caches: caches(map[byte]byte{25: 4, 60: 1, 92: 1, 95: 4, 106: 4, 107: 2, 116: 5, 122: 1, 160: 10, 166: 1, 171: 4}),
		known: ranges(1, 2, 9, 12, 15, 15, 25, 25, 30, 33, 35, 37, 49, 54, 60, 61, 68, 71, 74, 75, 82, 112, 114, 120,
			122, 126, 128, 140, 142, 142, 144, 149, 151, 152, 155, 157, 160, 160, 162, 166, 171, 176),
	},
	{3, 12}: {
		magic:     3531,
		loadConst: 100, unaryNegative: 11, popTop: 1, extendedArg: 144, resume: 151,
		pushNull: 2, call: 171,
		before: before(149, 135, 75, 1),
		jumps: jumps(map[jump][]byte{
			forward:  {93, 110, 114, 115, 123, 128, 129},
			backward: {134, 140},
		}),
		caches: caches(map[byte]byte{25: 1, 60: 1, 92: 1, 93: 1, 95: 4, 106: 9, 107: 1, 116: 4, 122: 1, 123: 1, 141: 1, 171: 3}),
		known: ranges(1, 2, 4, 5, 9, 9, 11, 12, 15, 15, 25, 27, 30, 33, 35, 37, 49, 55, 60, 61, 68, 69, 71, 71, 74, 75,
			83, 83, 85, 85, 87, 87, 89, 110, 114, 147, 149, 152, 155, 157, 162, 165, 171, 176),
	},
	{3, 13}: {
		magic:     3571,
		loadConst: 83, unaryNegative: 42, popTop: 32, extendedArg: 71, resume: 149,
		pushNull: 34, call: 53,
		before: before(62, 94, 35, 32),
		jumps: jumps(map[jump][]byte{
			forward:  {72, 79, 97, 98, 99, 100, 104},
			backward: {77, 78},
		}),
		caches: caches(map[byte]byte{5: 1, 39: 1, 40: 3, 45: 1, 53: 3, 58: 1, 59: 1, 72: 1, 77: 1, 82: 9, 91: 4, 93: 1,
			97: 1, 98: 1, 99: 1, 100: 1, 104: 1, 108: 4, 117: 1}),
		known: ranges(1, 2, 4, 16, 18, 21, 23, 69, 71, 118, 149, 149),
	},
	{3, 14}: {
		magic:     3627,
		loadConst: 82, unaryNegative: 41, popTop: 31, extendedArg: 69, resume: 128,
		pushNull: 33, call: 52,
		before: before(60, 97, 34, 31),
		jumps: jumps(map[jump][]byte{
			forward:  {70, 77, 100, 101, 102, 103, 106},
			backward: {68 /* END_ASYNC_FOR */, 75, 76},
		}),
		caches: caches(map[byte]byte{38: 1, 39: 3, 44: 5, 52: 3, 55: 3, 56: 1, 57: 1, 70: 1, 75: 1, 80: 9, 92: 4, 96: 1,
			100: 1, 101: 1, 102: 1, 103: 1, 106: 1, 110: 4, 119: 1}),
		known: ranges(1, 2, 4, 16, 18, 19, 21, 120, 128, 128),
	},
	{3, 15}: {
		magic:     3666,
		loadConst: 81, unaryNegative: 39, popTop: 29, extendedArg: 67, resume: 128,
		before: before(58, 96, 32, 29),
		beforeGenExpr: map[byte]int{
			83: 1, 85: 1, // LOAD_FAST, LOAD_FAST_BORROW
			14: 0,  // GET_AITER
			70: 1,  // GET_ITER, which makes two of one
			32: 1,  // RETURN_GENERATOR
			29: -1, // POP_TOP
		},
		jumps: jumps(map[jump][]byte{
			forward:  {68, 76, 99, 100, 101, 102, 105},
			backward: {66 /* END_ASYNC_FOR */, 74, 75},
		}),
		caches: caches(map[byte]byte{4: 1, 36: 1, 37: 3, 42: 5, 50: 3, 53: 3, 54: 1, 55: 1, 68: 1, 70: 1, 74: 1, 79: 9, 91: 4,
			95: 1, 99: 1, 100: 1, 101: 1, 102: 1, 105: 1, 109: 4, 118: 1, 128: 1 /* RESUME */}),
		known: ranges(1, 2, 4, 16, 19, 119, 128, 128),
	},
}

func before(copyFreeVars, makeCell, returnGenerator, popTop byte) map[byte]int {
	return map[byte]int{copyFreeVars: 0, makeCell: 0, returnGenerator: 1, popTop: -1}
}

func jumps(opcodes map[jump][]byte) (table [256]jump) {
	for kind, codes := range opcodes {
		for _, code := range codes {
			table[code] = kind
		}
	}
	return table
}

func caches(opcodes map[byte]byte) (table [256]byte) {
	for code, units := range opcodes {
		table[code] = units
	}
	return table
}

// ranges are the opcodes from each first bound to each second one.
func ranges(bounds ...byte) (table [256]bool) {
	for i := 0; i < len(bounds); i += 2 {
		for code := bounds[i]; code <= bounds[i+1]; code++ {
			table[code] = true
		}
	}
	return table
}

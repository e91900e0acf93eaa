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

// opcodes is what the transform needs to know of one version's instruction set.
type opcodes struct {
	// before are the opcodes that may stand before the RESUME that starts the function, and how
	// much deeper each leaves the stack.
	before      map[byte]int
	extendedArg byte
	resume      byte
	// callHook are the instructions of the prologue; loadConst among them takes the hook.
	callHook []instruction
	// depth is the stack that callHook needs.
	depth int
	// jumps are the jumps, all relative; true for those that go backward.
	jumps map[byte]bool
	// caches is the number of inline cache units after each opcode that has any.
	caches map[byte]int
}

type instruction struct {
	opcode, arg byte
	hook        bool // arg is the hook's index in co_consts
}

// The numbers are those of Lib/opcode.py (3.11, 3.12) and Include/opcode_ids.h (3.13, 3.14); caches
// are Lib/opcode.py's _inline_cache_entries, and Lib/_opcode_metadata.py's from 3.13 on.
var versions = map[Version]*opcodes{
	{3, 11}: {
		before:      before(149, 135, 75, 1),
		extendedArg: 144, resume: 151,
		callHook: []instruction{
			{opcode: 2},               // PUSH_NULL
			{opcode: 100, hook: true}, // LOAD_CONST
			{opcode: 100, hook: true}, // LOAD_CONST
			{opcode: 166, arg: 1},     // PRECALL
			{opcode: 171, arg: 1},     // CALL
			{opcode: 1},               // POP_TOP
		},
		depth:  3,
		jumps:  jumps([]byte{93, 110, 111, 112, 114, 115, 123, 128, 129}, []byte{134, 140, 173, 174, 175, 176}),
		caches: map[byte]int{25: 4, 60: 1, 92: 1, 95: 4, 106: 4, 107: 2, 116: 5, 122: 1, 160: 10, 166: 1, 171: 4},
	},
	{3, 12}: {
		before:      before(149, 135, 75, 1),
		extendedArg: 144, resume: 151,
		callHook: []instruction{
			{opcode: 2},               // PUSH_NULL
			{opcode: 100, hook: true}, // LOAD_CONST
			{opcode: 100, hook: true}, // LOAD_CONST
			{opcode: 171, arg: 1},     // CALL
			{opcode: 1},               // POP_TOP
		},
		depth:  3,
		jumps:  jumps([]byte{93, 110, 114, 115, 123, 128, 129}, []byte{134, 140}),
		caches: map[byte]int{25: 1, 60: 1, 92: 1, 93: 1, 95: 4, 106: 9, 107: 1, 116: 4, 122: 1, 123: 1, 141: 1, 171: 3},
	},
	// From 3.13 on the callable is pushed before the NULL.
	{3, 13}: {
		before:      before(62, 94, 35, 32),
		extendedArg: 71, resume: 149,
		callHook: []instruction{
			{opcode: 83, hook: true}, // LOAD_CONST
			{opcode: 34},             // PUSH_NULL
			{opcode: 83, hook: true}, // LOAD_CONST
			{opcode: 53, arg: 1},     // CALL
			{opcode: 32},             // POP_TOP
		},
		depth: 3,
		jumps: jumps([]byte{72, 79, 97, 98, 99, 100, 104}, []byte{77, 78}),
		caches: map[byte]int{5: 1, 39: 1, 40: 3, 45: 1, 53: 3, 58: 1, 59: 1, 72: 1, 77: 1, 82: 9, 91: 4, 93: 1, 97: 1,
			98: 1, 99: 1, 100: 1, 104: 1, 108: 4, 117: 1},
	},
	{3, 14}: {
		before:      before(60, 97, 34, 31),
		extendedArg: 69, resume: 128,
		callHook: []instruction{
			{opcode: 82, hook: true}, // LOAD_CONST
			{opcode: 33},             // PUSH_NULL
			{opcode: 82, hook: true}, // LOAD_CONST
			{opcode: 52, arg: 1},     // CALL
			{opcode: 31},             // POP_TOP
		},
		depth: 3,
		jumps: jumps([]byte{70, 77, 100, 101, 102, 103, 106}, []byte{68 /* END_ASYNC_FOR */, 75, 76}),
		caches: map[byte]int{38: 1, 39: 3, 44: 5, 52: 3, 55: 3, 56: 1, 57: 1, 70: 1, 75: 1, 80: 9, 92: 4, 96: 1, 100: 1,
			101: 1, 102: 1, 103: 1, 106: 1, 110: 4, 119: 1},
	},
}

func before(copyFreeVars, makeCell, returnGenerator, popTop byte) map[byte]int {
	return map[byte]int{copyFreeVars: 0, makeCell: 0, returnGenerator: 1, popTop: -1}
}

func jumps(forward, backward []byte) map[byte]bool {
	m := make(map[byte]bool, len(forward)+len(backward))
	for _, code := range forward {
		m[code] = false
	}
	for _, code := range backward {
		m[code] = true
	}
	return m
}

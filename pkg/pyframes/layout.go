package pyframes

import (
	"encoding/binary"
	"fmt"
)

// layout has the offsets, in bytes, that reading needs and that differ from build to
// build. Those that are the same in all supported versions are the constants below.
type layout struct {
	interpretersHead uint64 // _PyRuntimeState.interpreters.head
	interpNext       uint64 // PyInterpreterState.next
	interpModules    uint64 // PyInterpreterState.imports.modules

	typeName                           uint64 // PyTypeObject.tp_name
	typeFlags                          uint64 // PyTypeObject.tp_flags
	tupleSize, tupleItems              uint64 // PyTupleObject.ob_size, ob_item
	strLength, strState                uint64 // PyASCIIObject.length, state
	strASCII, strCompact               uint64 // where characters start: ASCII, and any other
	dictKeys, dictValues               uint64 // PyDictObject.ma_keys, ma_values
	splitValues                        uint64 // PyDictValues.values
	codeFilename, codeName             uint64 // PyCodeObject.co_…
	codeQualName, codeFirstLine        uint64
	codeWarmup, codeInstrumentation    uint64 // 0: the version has none
	codeMonitoring                     uint64
	codeAdaptive                       uint64
	opResume, opResumeCheck            byte
	opInstrumentedResume               byte
	opCopyFreeVars, opMakeCell         byte
	opReturnGenerator, opPopTop, opNop byte
	opExtendedArg                      byte
}

// The same in CPython 3.11, 3.13 and 3.14: Include/object.h, Include/cpython/object.h,
// funcobject.h, classobject.h, methodobject.h, code.h, Objects/funcobject.c, descrobject.c,
// moduleobject.h. Read from the debug information of 3.11.7 and 3.13.0 and
// compared with objects of a running 3.14.6.
const (
	objectType = 8  // PyObject.ob_type
	varSize    = 16 // PyVarObject.ob_size

	typeBase       = 256 // PyTypeObject.tp_base
	typeDict       = 264 // tp_dict; NULL for static types of the core from 3.12 on
	typeDictOffset = 288 // tp_dictoffset
	typeMRO        = 344 // tp_mro

	typeSubclassFlag = 1 << 31 // Py_TPFLAGS_TYPE_SUBCLASS

	functionCode    = 48 // PyFunctionObject.func_code
	wrapperCallable = 16 // staticmethod.sm_callable, classmethod.cm_callable
	propertyGetter  = 16 // propertyobject.prop_get
	methodFunction  = 16 // PyMethodObject.im_func
	moduleDict      = 16 // PyModuleObject.md_dict
	builtinSelf     = 24 // PyCFunctionObject.m_self
	codeConsts      = 24 // PyCodeObject.co_consts
	codeFlags       = 48 // co_flags

	dictUsed = 16 // PyDictObject.ma_used

	// struct _dictkeysobject, Include/internal/pycore_dict.h.
	keysLog2Size       = 8
	keysLog2IndexBytes = 9
	keysKind           = 10
	keysUsable         = 16
	keysEntries        = 24
	keysHeader         = 32
)

// layouts has one entry per supported minor version. Opcodes are those of
// Include/opcode.h (3.11) and Include/opcode_ids.h (3.13, 3.14).
var layouts = map[[2]int]*layout{
	// PyCodeObject, PyASCIIObject, _PyRuntimeState and PyInterpreterState as in the
	// debug information of 3.11.7; 3.11.2 (Debian) agrees.
	{3, 11}: {
		interpretersHead: 40, interpNext: 0, interpModules: 888,
		typeName: 24, typeFlags: 168, tupleSize: 16, tupleItems: 24,
		strLength: 16, strState: 32, strASCII: 48, strCompact: 72,
		dictKeys: 32, dictValues: 40, splitValues: 0,
		codeFilename: 112, codeName: 120, codeQualName: 128, codeFirstLine: 72,
		codeWarmup: 52, codeAdaptive: 184,
		opResume: 151, opResumeCheck: 150, // RESUME_QUICK
		opCopyFreeVars: 149, opMakeCell: 135, opReturnGenerator: 75, opPopTop: 1, opNop: 9, opExtendedArg: 144,
	},
	// What is 0 here is filled from _Py_DebugOffsets of the running process.
	{3, 13}: {
		splitValues: 8, codeInstrumentation: 168, codeMonitoring: 176,
		opResume: 149, opResumeCheck: 207, opInstrumentedResume: 236,
		opCopyFreeVars: 62, opMakeCell: 94, opReturnGenerator: 35, opPopTop: 32, opNop: 30, opExtendedArg: 71,
	},
	{3, 14}: {
		splitValues: 8, codeInstrumentation: 168, codeMonitoring: 176,
		opResume: 128, opResumeCheck: 196, opInstrumentedResume: 245,
		opCopyFreeVars: 60, opMakeCell: 97, opReturnGenerator: 34, opPopTop: 31, opNop: 27, opExtendedArg: 69,
	},
}

const (
	debugCookie = "xdebugpy"
	// What an offset in these structures may be at most. PyInterpreterState is the
	// largest, with 230 KiB in 3.14.
	maxOffset = 1 << 20
)

// debugOffsets gives, for a minor version, which word of struct _Py_DebugOffsets has
// which offset, counting from the cookie as word 0. The struct is
// Include/internal/pycore_runtime.h in 3.13 and pycore_debug_offsets.h in 3.14; it may
// change between minor versions, so a version that is not listed is not read.
var debugOffsets = map[int]struct {
	words int // to read
	head, next, modules, codeSize, filename, name, qualname, firstLine, adaptive,
	objectType, typeName, typeFlags, tupleItems, tupleSize, dictKeys, dictValues, strState, strLength, strSize int
}{
	13: {
		words: 73, head: 5, next: 8, modules: 11,
		codeSize: 34, filename: 35, name: 36, qualname: 37, firstLine: 39, adaptive: 43,
		objectType: 45, typeName: 47, typeFlags: 49, tupleItems: 51, tupleSize: 52,
		dictKeys: 57, dictValues: 58, strState: 68, strLength: 69, strSize: 70,
	},
	14: {
		words: 90, head: 5, next: 8, modules: 12,
		codeSize: 39, filename: 40, name: 41, qualname: 42, firstLine: 44, adaptive: 48,
		objectType: 51, typeName: 53, typeFlags: 55, tupleItems: 57, tupleSize: 58,
		dictKeys: 67, dictValues: 68, strState: 78, strLength: 79, strSize: 80,
	},
}

// layoutOf returns the layout of a version, completed from the offsets that the running
// interpreter publishes at the start of _PyRuntime.
func layoutOf(m memory, v Version, runtime uint64) (*layout, error) {
	known := layouts[[2]int{v.Major, v.Minor}]
	if known == nil {
		return nil, fmt.Errorf("CPython %s: %w", v, ErrUnsupportedBuild)
	}
	l := *known
	at, published := debugOffsets[v.Minor]
	if !published {
		return &l, nil
	}
	raw := make([]byte, 8*at.words)
	if err := m.readAt(raw, runtime); err != nil {
		return nil, fmt.Errorf("read _Py_DebugOffsets: %w", err)
	}
	word := func(i int) uint64 { return binary.LittleEndian.Uint64(raw[8*i:]) }
	if string(raw[:8]) != debugCookie {
		return nil, fmt.Errorf("%w: CPython %s without _Py_DebugOffsets at _PyRuntime", ErrUnsupportedBuild, v)
	}
	if word(2) != 0 {
		return nil, fmt.Errorf("%w: free-threaded CPython %s", ErrUnsupportedBuild, v)
	}
	if got := word(1); got>>16 != uint64(v.Major)<<8|uint64(v.Minor) {
		return nil, fmt.Errorf("%w: _Py_DebugOffsets is for version %#x, Py_Version says %s", ErrUnsupportedBuild, got, v)
	}
	l.interpretersHead, l.interpNext, l.interpModules = word(at.head), word(at.next), word(at.modules)
	l.codeFilename, l.codeName, l.codeQualName = word(at.filename), word(at.name), word(at.qualname)
	l.codeFirstLine, l.codeAdaptive = word(at.firstLine), word(at.adaptive)
	l.typeName, l.typeFlags = word(at.typeName), word(at.typeFlags)
	l.tupleItems, l.tupleSize = word(at.tupleItems), word(at.tupleSize)
	l.dictKeys, l.dictValues = word(at.dictKeys), word(at.dictValues)
	l.strState, l.strLength, l.strASCII = word(at.strState), word(at.strLength), word(at.strSize)
	// PyCompactUnicodeObject adds utf8_length and utf8 (Include/cpython/unicodeobject.h).
	l.strCompact = l.strASCII + 16
	for _, offset := range []uint64{
		l.interpretersHead, l.interpNext, l.interpModules, l.codeFilename, l.codeName, l.codeQualName,
		l.codeFirstLine, l.codeAdaptive, l.typeName, l.typeFlags, l.tupleItems, l.tupleSize,
		l.dictKeys, l.dictValues, l.strState, l.strLength, l.strASCII,
	} {
		if offset == 0 || offset > maxOffset {
			return nil, fmt.Errorf("%w: _Py_DebugOffsets of CPython %s has an offset of %d", ErrUnsupportedBuild, v, offset)
		}
	}
	if word(at.objectType) != objectType {
		return nil, fmt.Errorf("%w: ob_type at %d in CPython %s", ErrUnsupportedBuild, word(at.objectType), v)
	}
	// These are not published, so a code object of another size is another struct.
	if l.codeAdaptive != word(at.codeSize)-8 || l.codeAdaptive <= l.codeMonitoring {
		return nil, fmt.Errorf("%w: code objects of %d bytes in CPython %s", ErrUnsupportedBuild, word(at.codeSize), v)
	}
	return &l, nil
}

package pyframes

import (
	"encoding/binary"
	"fmt"
)

// layout has the offsets, in bytes, that reading needs and that differ from build to
// build. Those that are the same in all supported versions are the constants below.
// An offset of 0 says that the version has no such member.
type layout struct {
	interpretersHead uint64 // _PyRuntimeState.interpreters.head, from listHead
	interpNext       uint64 // PyInterpreterState.next
	interpModules    uint64 // PyInterpreterState.modules, imports.modules from 3.12

	gcHead      uint64 // size of PyGC_Head, which is before an object that is collected
	sharedCount bool   // flags share a word with ob_refcnt

	typeName, typeFlags    uint64 // PyTypeObject.tp_name, tp_flags
	cachedKeys             uint64 // PyHeapTypeObject.ht_cached_keys
	tupleSize, tupleItems  uint64 // PyTupleObject.ob_size, ob_item
	strLength, strState    uint64 // PyASCIIObject.length, state
	strASCII, strCompact   uint64 // where characters start: ASCII, and any other
	dictKeys, dictValues   uint64 // PyDictObject.ma_keys, ma_values
	splitValues            uint64 // PyDictValues.values
	keys                   *keysLayout
	inline                 inlineValues
	functionCode           uint64 // PyFunctionObject.func_…
	functionQualName       uint64
	functionModule         uint64
	codeConsts, codeFlags  uint64 // PyCodeObject.co_…
	codeFilename, codeName uint64
	codeQualName           uint64
	codeFirstLine          uint64
	codeBytes              uint64 // co_code, a bytes object, up to 3.10
	codeAdaptive           uint64 // co_code_adaptive, the instructions themselves, from 3.11
	codeSize               uint64 // of a PyCodeObject without its instructions

	codeZombie          uint64 // co_zombieframe: a finished frame kept for the next call
	frameCode           uint64 // PyFrameObject.f_code
	frameLastInstr      uint64 // PyFrameObject.f_lasti
	codeOpcacheFlag     uint64
	codeWarmup          uint64
	codeInstrumentation uint64 // _co_instrumentation_version
	codeMonitoring      uint64 // _co_monitoring
	localMonitors       int    // size of _PyCoMonitoringData.local_monitors

	opResume, opResumeCheck            byte
	opResumeCheckJIT, opEnterExecutor  byte
	opInstrumentedResume               byte
	opInstrumented                     byte // the first of the INSTRUMENTED_ opcodes
	opCopyFreeVars, opMakeCell         byte
	opReturnGenerator, opPopTop, opNop byte
	opExtendedArg                      byte
	caches                             *cacheTable
}

// keysLayout says how struct _dictkeysobject is laid out.
type keysLayout struct {
	usable, entries, header uint64
	logSizes                bool // sizes as powers of two, and kinds of entries: from 3.11
}

var (
	// Objects/dict-common.h, CPython 3.6 to 3.10.
	keysUpTo310 = &keysLayout{usable: 24, entries: 32, header: 40}
	// Include/internal/pycore_dict.h, CPython 3.11 to 3.15.
	keysFrom311 = &keysLayout{usable: 16, entries: 24, header: 32, logSizes: true}
)

// inlineValues says how an object without a dict of its own holds its attributes: up to
// 3.10 it always has the dict.
type inlineValues int

const (
	noInlineValues inlineValues = iota
	// 3.11: PyDictValues * four words before the object, or PyObject * three before
	// (Include/internal/pycore_object.h).
	valuesBefore
	// 3.12: one word three words before, a PyDictValues * less one where the lowest bit is set.
	valuesTagged
	// 3.13 and newer: the dict three words before; else PyDictValues after the object, where
	// the type has Py_TPFLAGS_INLINE_VALUES.
	valuesAfter
)

// The same in CPython 3.6 to 3.15: Include/object.h, Include/cpython/object.h,
// classobject.h, methodobject.h, descrobject.h, structmember.h, bytesobject.h,
// Objects/funcobject.c, descrobject.c, moduleobject.c, Modules/_functoolsmodule.c. Read from
// the debug information of one build of each version.
const (
	objectType = 8  // PyObject.ob_type
	varSize    = 16 // PyVarObject.ob_size

	typeBasicSize  = 32  // PyTypeObject.tp_basicsize
	typeItemSize   = 40  // tp_itemsize
	typeMethods    = 232 // tp_methods
	typeMembers    = 240 // tp_members
	typeGetSet     = 248 // tp_getset
	typeBase       = 256 // tp_base
	typeDict       = 264 // tp_dict; NULL for static types of the core from 3.12 on
	typeDescrSet   = 280 // tp_descr_set
	typeDictOffset = 288 // tp_dictoffset
	typeMRO        = 344 // tp_mro

	typeInlineValuesFlag = 1 << 2  // Py_TPFLAGS_INLINE_VALUES, from 3.13
	typeManagedDictFlag  = 1 << 4  // Py_TPFLAGS_MANAGED_DICT, from 3.11
	typeHeapFlag         = 1 << 9  // Py_TPFLAGS_HEAPTYPE
	typeLongFlag         = 1 << 24 // Py_TPFLAGS_LONG_SUBCLASS
	typeSubclassFlag     = 1 << 31 // Py_TPFLAGS_TYPE_SUBCLASS

	wrapperCallable = 16 // staticmethod.sm_callable, classmethod.cm_callable
	propertyGetter  = 16 // propertyobject.prop_get
	propertySetter  = 24 // prop_set
	propertyDeleter = 32 // prop_del
	methodFunction  = 16 // PyMethodObject.im_func
	partialFunction = 16 // partialobject.fn
	moduleDict      = 16 // PyModuleObject.md_dict
	builtinSelf     = 24 // PyCFunctionObject.m_self
	descrMember     = 40 // PyMemberDescrObject.d_member
	bytesData       = 32 // PyBytesObject.ob_sval

	// PyMemberDef: name, type, offset, and its size. PyMethodDef and PyGetSetDef begin with
	// a name too.
	memberType    = 8
	memberOffset  = 16
	memberDefSize = 40
	methodDefSize = 32
	getSetDefSize = 40
	memberObject  = 6  // T_OBJECT
	memberObjectX = 16 // T_OBJECT_EX

	// struct _dictkeysobject.
	dictUsed           = 16 // PyDictObject.ma_used
	keysSize           = 8  // dk_size, up to 3.10
	keysLog2Size       = 8
	keysLog2IndexBytes = 9
	keysKind           = 10
)

// The parts that several versions share.
var (
	// CPython 3.6 and 3.7: Include/code.h, funcobject.h, frameobject.h.
	layout36 = layout{
		gcHead:   32,
		typeName: 24, typeFlags: 168, cachedKeys: 856, tupleSize: 16, tupleItems: 24,
		strLength: 16, strState: 32, strASCII: 48, strCompact: 72,
		dictKeys: 32, dictValues: 40, keys: keysUpTo310,
		functionCode: 16, functionModule: 88, functionQualName: 104,
		codeFlags: 32, codeFirstLine: 36, codeBytes: 40, codeConsts: 48, codeFilename: 96, codeName: 104,
		codeZombie: 120, codeSize: 144, frameCode: 32,
	}
	// CPython 3.8, 3.9 and 3.10: Include/code.h (3.10: cpython/code.h).
	layout38 = layout36.but(func(l *layout) {
		l.gcHead = 16
		l.codeFlags, l.codeFirstLine, l.codeBytes, l.codeConsts, l.codeFilename, l.codeName = 36, 40, 48, 56, 104, 112
		l.codeZombie, l.codeOpcacheFlag, l.codeSize = 128, 168, 176
		l.frameLastInstr, l.cachedKeys = 104, 872
	})
	// CPython 3.11 and newer: Include/cpython/funcobject.h, code.h.
	layout311 = layout{
		gcHead:   16,
		typeName: 24, typeFlags: 168, cachedKeys: 872, tupleSize: 16, tupleItems: 24,
		strLength: 16, strState: 32, strASCII: 48, strCompact: 72,
		dictKeys: 32, dictValues: 40, keys: keysFrom311, inline: valuesBefore,
		functionQualName: 40, functionCode: 48, functionModule: 104,
		codeConsts: 24, codeFlags: 48, codeFirstLine: 72, codeFilename: 112, codeName: 120, codeQualName: 128,
	}
	layout312 = layout311.but(func(l *layout) {
		l.strASCII, l.strCompact, l.cachedKeys, l.codeFirstLine = 40, 56, 880, 68
	})
	// CPython 3.13 and newer. What is missing is in _Py_DebugOffsets of the running process.
	layout313 = layout312.but(func(l *layout) {
		l.inline, l.splitValues = valuesAfter, 8
		l.codeInstrumentation, l.codeMonitoring = 168, 176
	})
)

func (l layout) but(change func(*layout)) layout {
	change(&l)
	return l
}

func (l layout) with(change func(*layout)) *layout {
	change(&l)
	return &l
}

// layouts has one entry per supported minor version: offsets as in the debug information of
// 3.6.15, 3.7.16, 3.8.18, 3.9.18, 3.10.13, 3.11.7, 3.12.1, 3.13.0, 3.14.8 and 3.15.0. Opcodes
// are those of Include/opcode.h (up to 3.12) and Include/opcode_ids.h (from 3.13).
var layouts = map[[2]int]*layout{
	{3, 6}: layout36.with(func(l *layout) {
		l.interpModules, l.frameLastInstr = 16, 120
	}),
	{3, 7}: layout36.with(func(l *layout) {
		l.interpretersHead, l.interpModules, l.frameLastInstr = 24, 40, 104
	}),
	{3, 8}: layout38.with(func(l *layout) {
		l.interpretersHead, l.interpModules = 32, 56
	}),
	{3, 9}: layout38.with(func(l *layout) {
		l.interpretersHead, l.interpModules, l.cachedKeys = 32, 856, 864
	}),
	{3, 10}: layout38.with(func(l *layout) {
		l.interpretersHead, l.interpModules, l.frameLastInstr = 32, 856, 96
		l.functionQualName, l.functionCode, l.functionModule = 40, 48, 104
	}),
	{3, 11}: layout311.with(func(l *layout) {
		l.interpretersHead, l.interpModules = 40, 888
		l.codeWarmup, l.codeAdaptive, l.codeSize = 52, 184, 184
		l.opResume, l.opResumeCheck = 151, 150 // RESUME_QUICK
		l.opCopyFreeVars, l.opMakeCell, l.opReturnGenerator, l.opPopTop, l.opNop, l.opExtendedArg = 149, 135, 75, 1, 9, 144
	}),
	{3, 12}: layout312.with(func(l *layout) {
		l.interpretersHead, l.interpModules = 40, 944
		l.inline = valuesTagged
		l.codeInstrumentation, l.codeMonitoring, l.localMonitors = 160, 168, 15
		l.codeAdaptive, l.codeSize = 192, 192
		l.opResume, l.opInstrumentedResume, l.opInstrumented = 151, 240, 237
		l.opCopyFreeVars, l.opMakeCell, l.opReturnGenerator, l.opPopTop, l.opNop, l.opExtendedArg = 149, 135, 75, 1, 9, 144
		l.caches = caches312
	}),
	{3, 13}: layout313.with(func(l *layout) {
		l.localMonitors = 10
		l.opResume, l.opResumeCheck, l.opInstrumentedResume, l.opInstrumented = 149, 207, 236, 236
		l.opCopyFreeVars, l.opMakeCell, l.opReturnGenerator, l.opPopTop, l.opNop, l.opExtendedArg = 62, 94, 35, 32, 30, 71
	}),
	{3, 14}: layout313.with(func(l *layout) {
		l.sharedCount = true
		l.localMonitors = 11
		l.opResume, l.opResumeCheck, l.opInstrumentedResume, l.opInstrumented = 128, 196, 245, 234
		l.opCopyFreeVars, l.opMakeCell, l.opReturnGenerator, l.opPopTop, l.opNop, l.opExtendedArg = 60, 97, 34, 31, 27, 69
	}),
	{3, 15}: layout313.with(func(l *layout) {
		l.sharedCount = true
		l.localMonitors, l.cachedKeys = 16, 888
		l.opResume, l.opResumeCheck, l.opInstrumentedResume, l.opInstrumented = 128, 200, 244, 233
		// RESUME may start a trace of the JIT, and be replaced by the trace.
		l.opResumeCheckJIT, l.opEnterExecutor = 201, 254
		l.opCopyFreeVars, l.opMakeCell, l.opReturnGenerator, l.opPopTop, l.opNop, l.opExtendedArg = 58, 96, 32, 29, 25, 67
	}),
}

const (
	debugCookie = "xdebugpy"
	// What an offset in these structures may be at most. PyInterpreterState is the
	// largest, with 230 KiB in 3.14.
	maxOffset = 1 << 20
)

// debugOffsets gives, for a minor version, which word of struct _Py_DebugOffsets has
// which offset, counting from the cookie as word 0. The struct is
// Include/internal/pycore_runtime.h in 3.13 and pycore_debug_offsets.h from 3.14; it may
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
	15: {
		words: 111, head: 5, next: 8, modules: 12,
		codeSize: 47, filename: 48, name: 49, qualname: 50, firstLine: 52, adaptive: 56,
		objectType: 59, typeName: 61, typeFlags: 63, tupleItems: 69, tupleSize: 70,
		dictKeys: 79, dictValues: 80, strState: 90, strLength: 91, strSize: 92,
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
	l.codeSize = l.codeAdaptive
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

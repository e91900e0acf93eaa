package pyframes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// An image is a running interpreter's memory together with what is needed to read
// objects in it. All methods stand any contents of that memory.
type image struct {
	mem    memory
	layout *layout
	addr   map[string]uint64 // run-time addresses of the names in wanted
}

// word reads the word at addr+offset. NULL and wild pointers fail.
func (im *image) word(addr, offset uint64) (uint64, error) {
	if addr < pageSize {
		return 0, fmt.Errorf("%w: %#x used as an object's address", ErrCorrupt, addr)
	}
	return readWord(im.mem, addr+offset)
}

func (im *image) uint32(addr, offset uint64) (uint32, error) {
	var b [4]byte
	if addr < pageSize {
		return 0, fmt.Errorf("%w: %#x used as an object's address", ErrCorrupt, addr)
	}
	err := im.mem.readAt(b[:], addr+offset)
	return binary.LittleEndian.Uint32(b[:]), err
}

// is reports whether the object's type is exactly the named static type.
func (im *image) is(object uint64, typeName string) (bool, error) {
	t, err := im.word(object, objectType)
	return t == im.addr[typeName], err
}

func (im *image) mustBe(object uint64, typeName string) error {
	ok, err := im.is(object, typeName)
	if err == nil && !ok {
		err = fmt.Errorf("%w: object at %#x is no %s", ErrCorrupt, object, strings.TrimSuffix(strings.TrimPrefix(typeName, "Py"), "_Type"))
	}
	return err
}

// typeNameOf returns tp_name of the object's type: "dict", "functools.partial".
func (im *image) typeNameOf(object uint64) (string, error) {
	t, err := im.word(object, objectType)
	if err != nil {
		return "", err
	}
	name, err := im.word(t, im.layout.typeName)
	if err != nil {
		return "", err
	}
	return readCString(im.mem, name)
}

// isClass reports whether the object is a class, whatever its metaclass.
func (im *image) isClass(object uint64) (bool, error) {
	t, err := im.word(object, objectType)
	if err != nil {
		return false, err
	}
	flags, err := im.word(t, im.layout.typeFlags)
	return flags&typeSubclassFlag != 0, err
}

// isInstance reports whether the object's type derives, by tp_base, from the named one.
func (im *image) isInstance(object uint64, typeName string) (bool, error) {
	t, err := im.word(object, objectType)
	for depth := 0; err == nil && depth < 64; depth++ {
		if t == im.addr[typeName] {
			return true, nil
		}
		if t == 0 {
			return false, nil
		}
		t, err = im.word(t, typeBase)
	}
	return false, err
}

// str reads a str object of at most maxText bytes. Lone surrogates become U+FFFD.
func (im *image) str(object uint64) (string, error) {
	if err := im.mustBe(object, "PyUnicode_Type"); err != nil {
		return "", err
	}
	length, err := im.word(object, im.layout.strLength)
	if err != nil {
		return "", err
	}
	state, err := im.uint32(object, im.layout.strState)
	if err != nil {
		return "", err
	}
	// Bit field of PyASCIIObject: interned 2 bits, kind 3, compact 1, ascii 1.
	width, compact, ascii := uint64(state>>2&7), state>>5&1 != 0, state>>6&1 != 0
	if width != 1 && width != 2 && width != 4 || !compact || ascii && width != 1 {
		return "", fmt.Errorf("%w: str at %#x has state %#x", ErrCorrupt, object, state)
	}
	if length > maxText/width {
		return "", fmt.Errorf("%w: str of %d characters is longer than the limit of %d bytes", ErrCorrupt, length, maxText)
	}
	start := im.layout.strCompact
	if ascii {
		start = im.layout.strASCII
	}
	raw := make([]byte, length*width)
	if err := im.mem.readAt(raw, object+start); err != nil {
		return "", err
	}
	if ascii {
		return string(raw), nil
	}
	var text strings.Builder
	for ; len(raw) > 0; raw = raw[width:] {
		switch width {
		case 1:
			text.WriteRune(rune(raw[0]))
		case 2:
			text.WriteRune(rune(binary.LittleEndian.Uint16(raw)))
		case 4:
			text.WriteRune(rune(binary.LittleEndian.Uint32(raw)))
		}
	}
	return text.String(), nil
}

// maxTuple bounds the tuples read: a class's mro, a code object's constants.
const maxTuple = 1 << 16

func (im *image) tupleLen(object uint64) (uint64, error) {
	if err := im.mustBe(object, "PyTuple_Type"); err != nil {
		return 0, err
	}
	n, err := im.word(object, im.layout.tupleSize)
	if err == nil && n > maxTuple {
		err = fmt.Errorf("%w: tuple of %d items", ErrCorrupt, n)
	}
	return n, err
}

func (im *image) tupleItem(object, i uint64) (uint64, error) {
	return im.word(object, im.layout.tupleItems+8*i)
}

// maxEntries bounds the dicts read.
const maxEntries = 1 << 20

// dictHead is what must be the same before and after a dict was read.
type dictHead struct {
	used, keys, values uint64
	log2Size           byte
	log2IndexBytes     byte
	kind               byte
	usable, entries    uint64
}

func (im *image) dictHead(m memory, dict uint64) (h dictHead, err error) {
	if h.used, err = readWord(m, dict+dictUsed); err != nil {
		return h, err
	}
	if h.keys, err = readWord(m, dict+im.layout.dictKeys); err != nil {
		return h, err
	}
	if h.values, err = readWord(m, dict+im.layout.dictValues); err != nil {
		return h, err
	}
	var head [keysHeader]byte
	if h.keys < pageSize {
		return h, fmt.Errorf("%w: dict at %#x has keys at %#x", ErrCorrupt, dict, h.keys)
	}
	if err = m.readAt(head[:], h.keys); err != nil {
		return h, err
	}
	h.log2Size, h.log2IndexBytes, h.kind = head[keysLog2Size], head[keysLog2IndexBytes], head[keysKind]
	h.usable = binary.LittleEndian.Uint64(head[keysUsable:])
	h.entries = binary.LittleEndian.Uint64(head[keysEntries:])
	return h, nil
}

// Kinds of dict keys, DictKeysKind in Include/internal/pycore_dict.h.
const (
	keysGeneral = 0 // entries are hash, key, value
	keysUnicode = 1 // entries are key, value
	keysSplit   = 2 // as unicode; the values are in ma_values
)

// lookup returns the value of a str key in a dict, 0 when the key is not there. The
// hash is of no use, as it is keyed by a secret: entries are compared one by one.
func (im *image) lookup(dict uint64, key string) (uint64, error) {
	ok, err := im.isInstance(dict, "PyDict_Type")
	if err != nil {
		return 0, err
	}
	if !ok {
		return 0, fmt.Errorf("%w: object at %#x is no dict", ErrCorrupt, dict)
	}
	// The dict's own memory is read past the cache, so that the comparison afterwards
	// means something.
	live := im.mem
	if c, cached := live.(*pageCache); cached {
		live = c.under
	}
	before, err := im.dictHead(live, dict)
	if err != nil {
		return 0, err
	}
	value, err := im.scan(live, dict, before, key)
	// Whatever was found or went wrong while the dict changed says nothing.
	after, headErr := im.dictHead(live, dict)
	if headErr == nil && after != before {
		return 0, fmt.Errorf("dict at %#x: %w", dict, ErrTorn)
	}
	return value, errors.Join(err, headErr)
}

func (im *image) scan(live memory, dict uint64, h dictHead, key string) (uint64, error) {
	implausible := func() error {
		return fmt.Errorf("%w: dict at %#x with %d entries in a table of kind %d and size 2^%d", ErrCorrupt, dict, h.entries, h.kind, h.log2Size)
	}
	if h.log2Size > 40 || h.log2IndexBytes > h.log2Size+3 || h.entries > 1<<h.log2Size || h.kind > keysSplit {
		return 0, implausible()
	}
	if h.entries > maxEntries {
		return 0, fmt.Errorf("%w: dict at %#x has %d entries, the limit is %d", ErrCorrupt, dict, h.entries, maxEntries)
	}
	size, keyAt := uint64(16), uint64(0)
	if h.kind == keysGeneral {
		size, keyAt = 24, 8
	}
	first := h.keys + keysHeader + 1<<h.log2IndexBytes
	if c, cached := im.mem.(*pageCache); cached {
		if err := c.spend(int(h.entries * size)); err != nil {
			return 0, err
		}
	}
	entries := make([]byte, h.entries*size)
	if err := live.readAt(entries, first); err != nil {
		return 0, err
	}
	length := uint64(len([]rune(key)))
	for i := range h.entries {
		entry := entries[i*size:]
		name := binary.LittleEndian.Uint64(entry[keyAt:])
		if name == 0 {
			continue // deleted
		}
		same, err := im.equal(name, key, length)
		if err != nil {
			return 0, err
		}
		if !same {
			continue
		}
		if h.values == 0 {
			if h.kind == keysSplit {
				return 0, implausible()
			}
			if value := binary.LittleEndian.Uint64(entry[keyAt+8:]); value != 0 {
				return value, nil
			}
			continue
		}
		return readWord(live, h.values+im.layout.splitValues+8*i)
	}
	return 0, nil
}

// equal compares a key of a dict with text, cheapest test first.
func (im *image) equal(object uint64, text string, length uint64) (bool, error) {
	if isStr, err := im.is(object, "PyUnicode_Type"); err != nil || !isStr {
		return false, err
	}
	n, err := im.word(object, im.layout.strLength)
	if err != nil || n != length {
		return false, err
	}
	got, err := im.str(object)
	return got == text, err
}

// mainFirst returns the addresses of the interpreter states, the main one first. There
// is more than one only where subinterpreters are used.
func (im *image) mainFirst() ([]uint64, error) {
	state, err := im.word(im.addr["_PyRuntime"], im.layout.interpretersHead)
	if err != nil {
		return nil, err
	}
	var states []uint64
	for state != 0 {
		if len(states) == 256 || slices.Contains(states, state) {
			return nil, fmt.Errorf("%w: the list of interpreters does not end", ErrCorrupt)
		}
		states = append(states, state)
		if state, err = im.word(state, im.layout.interpNext); err != nil {
			return nil, err
		}
	}
	if len(states) == 0 {
		return nil, ErrNotReady
	}
	slices.Reverse(states) // new ones are put in front
	return states, nil
}

// modules returns an interpreter's sys.modules.
func (im *image) modules(state uint64) (uint64, error) {
	modules, err := im.word(state, im.layout.interpModules)
	if err != nil {
		return 0, err
	}
	if modules == 0 {
		return 0, ErrNotReady
	}
	return modules, nil
}

// check compares the layout with objects that every interpreter has. Until it has
// succeeded, nothing read with the layout means anything.
func (im *image) check(v Version) error {
	mismatch := func(what string, err error) error {
		if err != nil && (errors.Is(err, ErrNoProcess) || errors.Is(err, ErrPermission) || errors.Is(err, ErrNotReady) || errors.Is(err, ErrTorn)) {
			return err
		}
		sentence := fmt.Sprintf("%s is not where CPython %s has it", what, v)
		if err != nil {
			sentence += ": " + err.Error()
		}
		return fmt.Errorf("%w: %s", ErrUnsupportedBuild, sentence)
	}
	if err := im.checkTypes(); err != nil {
		return mismatch("a built-in type", err)
	}
	states, err := im.mainFirst()
	if err != nil {
		return mismatch("the list of interpreters", err)
	}
	modules, err := im.modules(states[0])
	if err != nil {
		return mismatch("sys.modules", err)
	}
	if err := im.mustBe(modules, "PyDict_Type"); err != nil {
		return mismatch("sys.modules", err)
	}
	for _, name := range []string{"sys", "builtins"} {
		module, err := im.lookup(modules, name)
		if err != nil {
			return mismatch("module "+name, err)
		}
		if module == 0 {
			// sys.modules is there before its first two entries, and after them.
			return ErrNotReady
		}
		if ok, err := im.isInstance(module, "PyModule_Type"); err != nil || !ok {
			return mismatch("module "+name, err)
		}
		dict, err := im.word(module, moduleDict)
		if err != nil {
			return mismatch("the namespace of module "+name, err)
		}
		own, err := im.lookup(dict, "__name__")
		if err != nil || own == 0 {
			return mismatch("the name of module "+name, err)
		}
		if text, err := im.str(own); err != nil || text != name {
			return mismatch("the name of module "+name, err)
		}
	}
	return nil
}

// checkTypes verifies that the static types are what their symbols say. It is cheap
// enough to precede every answer, and fails when another program took the process over.
func (im *image) checkTypes() error {
	for symbol, name := range map[string]string{
		"PyType_Type": "type", "PyDict_Type": "dict", "PyUnicode_Type": "str", "PyTuple_Type": "tuple",
		"PyModule_Type": "module", "PyFunction_Type": "function", "PyCode_Type": "code",
		"PyCFunction_Type": "builtin_function_or_method",
	} {
		if err := im.mustBe(im.addr[symbol], "PyType_Type"); err != nil {
			return err
		}
		at, err := im.word(im.addr[symbol], im.layout.typeName)
		if err != nil {
			return err
		}
		if got, err := readCString(im.mem, at); err != nil || got != name {
			return errors.Join(fmt.Errorf("%w: type %s is named %.40q", ErrCorrupt, symbol, got), err)
		}
	}
	return nil
}

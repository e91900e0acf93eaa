package pyframes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// An image is a running interpreter's memory together with what is needed to read
// objects in it. All methods stand any contents of that memory.
type image struct {
	mem      memory
	layout   *layout
	addr     map[string]uint64 // run-time addresses of the names in wanted
	listHead uint64            // of the structure that interpretersHead is in
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
	for depth := 0; err == nil && depth < maxBases; depth++ {
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

// maxBytes bounds the bytes objects read, which are the code of functions.
const maxBytes = 2 * maxInstructions

// bytesObject returns where the contents of a bytes object are, and how many.
func (im *image) bytesObject(object uint64) (data, n uint64, err error) {
	if err := im.mustBe(object, "PyBytes_Type"); err != nil {
		return 0, 0, err
	}
	if n, err = im.word(object, varSize); err == nil && n > maxBytes {
		err = fmt.Errorf("%w: bytes object of %d bytes", ErrCorrupt, n)
	}
	return object + bytesData, n, err
}

// smallInt reads an int of one digit, 30 bits, up to 3.11.
func (im *image) smallInt(object uint64) (uint32, error) {
	if err := im.mustBe(object, "PyLong_Type"); err != nil {
		return 0, err
	}
	if n, err := im.word(object, varSize); err != nil || n > 1 {
		return 0, errors.Join(fmt.Errorf("%w: int of %d digits", ErrCorrupt, n), err)
	}
	return im.uint32(object, varSize+8)
}

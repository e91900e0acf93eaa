package pyframes

import (
	"encoding/binary"
	"fmt"
)

// Code is a code object in a process, as it was when it was read.
type Code struct {
	Addr             uint64 // of the PyCodeObject; reused by CPython after a free
	Name             string // co_name
	NameAddr         uint64 // of the str that co_name is
	QualName         string // co_qualname; before 3.11, which has none, that of its function, or Name
	Filename         string // co_filename, as the process's imports gave it
	FirstLine        int    // co_firstlineno; of the first decorator, where there is one
	Flags            uint32 // co_flags
	Instructions     uint64 // address of the first instruction
	InstructionCount int    // in units of two bytes, inline caches included
}

// SameAs reports whether two readings are of the same code object: the address alone
// does not tell, because CPython reuses it.
func (c Code) SameAs(other Code) bool {
	return c.Addr == other.Addr && c.FirstLine == other.FirstLine && c.Name == other.Name && c.Filename == other.Filename
}

// maxInstructions bounds co_code, in units of two bytes.
const maxInstructions = 1 << 26

// Bits of co_flags, Include/code.h.
const (
	codeOptimized      = 0x1 // a function's code, not a module's or a class's
	codeNewLocals      = 0x2
	codeVarArgs        = 0x4
	codeVarKeywords    = 0x8
	codeGenerator      = 0x20
	codeCoroutine      = 0x80
	codeIterableCorout = 0x100
	codeAsyncGenerator = 0x200

	kindFlags = codeGenerator | codeCoroutine | codeIterableCorout | codeAsyncGenerator
)

// suspends reports whether a call only creates a generator or coroutine, which runs later or
// never.
func (c Code) suspends() bool { return c.Flags&kindFlags != 0 }

// IsFunction reports whether it is the code of a function, not of a module or class.
func (c Code) IsFunction() bool { return c.Flags&codeOptimized != 0 }

func (im *image) code(addr uint64) (Code, error) {
	c := Code{Addr: addr}
	if err := im.mustBe(addr, "PyCode_Type"); err != nil {
		return c, err
	}
	l := im.layout
	var err error
	if c.NameAddr, err = im.word(addr, l.codeName); err != nil {
		return c, err
	}
	if c.Name, err = im.str(c.NameAddr); err != nil {
		return c, err
	}
	if c.Filename, err = im.textAt(addr, l.codeFilename); err != nil {
		return c, err
	}
	c.QualName = c.Name
	if l.codeQualName != 0 {
		if c.QualName, err = im.textAt(addr, l.codeQualName); err != nil {
			return c, err
		}
	}
	line, err := im.uint32(addr, l.codeFirstLine)
	if err != nil {
		return c, err
	}
	c.FirstLine = int(int32(line))
	if c.Flags, err = im.uint32(addr, l.codeFlags); err != nil {
		return c, err
	}
	size := uint64(0)
	if l.codeBytes != 0 {
		object, err := im.word(addr, l.codeBytes)
		if err != nil {
			return c, err
		}
		if c.Instructions, size, err = im.bytesObject(object); err != nil {
			return c, err
		}
		size /= 2
	} else {
		c.Instructions = addr + l.codeAdaptive
		if size, err = im.word(addr, varSize); err != nil {
			return c, err
		}
	}
	if size == 0 || size > maxInstructions {
		return c, fmt.Errorf("%w: code object at %#x has %d instructions", ErrCorrupt, addr, size)
	}
	c.InstructionCount = int(size)
	return c, nil
}

// textAt reads the str that a member of an object is.
func (im *image) textAt(object, offset uint64) (string, error) {
	text, err := im.word(object, offset)
	if err != nil {
		return "", err
	}
	return im.str(text)
}

// isStill reports whether the code object is there now, past any cache.
func (im *image) isStill(c Code) bool {
	l := im.layout
	head := make([]byte, max(l.codeName, l.codeFirstLine)+8)
	if im.readLive(head, c.Addr) != nil {
		return false
	}
	word := func(offset uint64) uint64 { return binary.LittleEndian.Uint64(head[offset:]) }
	return im.plausibleCount(word(0)) && word(objectType) == im.addr["PyCode_Type"] &&
		word(l.codeName) == c.NameAddr && int(int32(word(l.codeFirstLine))) == c.FirstLine
}

// ReadCode reads the living code object at an address. Of one that was freed, the bytes may be there and
// its name be another's by now.
func (p *Process) ReadCode(addr uint64) (Code, error) {
	view := p.image
	view.mem = newPageCache(p.image.mem)
	c, err := view.code(addr)
	// What lives after it was read did not change meanwhile, so that once is enough.
	if err == nil && !view.isStill(c) {
		err = fmt.Errorf("code object at %#x: %w", addr, ErrTorn)
	}
	if gone := p.Gone(); gone != nil {
		err = gone
	}
	return c, err
}

// CodeOffsets says where in a code object, and in a str, what the kernel programs read is, in bytes. With
// the address, the name and the first line tell a code object from the one that takes its place
// after a free.
type CodeOffsets struct {
	Name, FirstLine, QualName, Filename, Flags uint32 // QualName is 0 before 3.11, which has none
	StrLength, StrState, StrASCII              uint32 // PyASCIIObject.length, .state, and its end
}

// CodeOffsets returns those of the process's build.
func (p *Process) CodeOffsets() CodeOffsets {
	l := p.image.layout
	return CodeOffsets{
		Name: uint32(l.codeName), FirstLine: uint32(l.codeFirstLine), QualName: uint32(l.codeQualName), Filename: uint32(l.codeFilename),
		Flags:     uint32(l.codeFlags),
		StrLength: uint32(l.strLength), StrState: uint32(l.strState), StrASCII: uint32(l.strASCII),
	}
}

package pyframes

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// maxEntries bounds the dicts read.
const maxEntries = 1 << 20

// dictHead is what must be the same before and after a dict was read.
type dictHead struct {
	used, keys, values uint64
	table              dictKeys
}

// dictKeys is the head of a struct _dictkeysobject. The dicts of one class's objects may share it.
type dictKeys struct {
	kind            byte
	usable, entries uint64
	first           uint64 // address of the first entry
}

// Kinds of dict keys, DictKeysKind in Include/internal/pycore_dict.h. Before 3.11 all entries
// are general, and a dict with ma_values is split.
const (
	keysGeneral = 0 // entries are hash, key, value
	keysUnicode = 1 // entries are key, value
	keysSplit   = 2 // as unicode; the values are in ma_values
)

// entry returns the size of one entry, and where in it the key is. The value follows the key.
func (k dictKeys) entry() (size, keyAt uint64) {
	if k.kind == keysGeneral {
		return 24, 8
	}
	return 16, 0
}

// readLive reads the memory itself, past the cache, so that comparing what was read before and after
// means something.
func (im *image) readLive(b []byte, addr uint64) error {
	c, cached := im.mem.(*pageCache)
	if !cached {
		return im.mem.readAt(b, addr)
	}
	if err := c.spend(max(len(b), liveCost)); err != nil {
		return err
	}
	return c.under.readAt(b, addr)
}

// liveWord reads a word past the cache.
func (im *image) liveWord(addr uint64) (uint64, error) {
	var b [8]byte
	err := im.readLive(b[:], addr)
	return binary.LittleEndian.Uint64(b[:]), err
}

func (im *image) dictHead(dict uint64) (h dictHead, err error) {
	var object [48]byte
	if err = im.readLive(object[:], dict); err != nil {
		return h, err
	}
	word := func(offset uint64) uint64 { return binary.LittleEndian.Uint64(object[offset:]) }
	if im.layout.dictValues > 40 || im.layout.dictKeys > 40 {
		return h, fmt.Errorf("%w: dict with its keys at %d and its values at %d", ErrUnsupportedBuild, im.layout.dictKeys, im.layout.dictValues)
	}
	h.used, h.keys, h.values = word(dictUsed), word(im.layout.dictKeys), word(im.layout.dictValues)
	h.table, err = im.dictKeys(h.keys)
	return h, err
}

// dictKeys reads the head of a dict's keys.
func (im *image) dictKeys(keys uint64) (k dictKeys, err error) {
	if keys < pageSize {
		return k, fmt.Errorf("%w: dict keys at %#x", ErrCorrupt, keys)
	}
	at := im.layout.keys
	head := make([]byte, at.header)
	if err = im.readLive(head, keys); err != nil {
		return k, err
	}
	word := func(offset uint64) uint64 { return binary.LittleEndian.Uint64(head[offset:]) }
	k.usable, k.entries = word(at.usable), word(at.entries)
	var size, indexBytes uint64
	if at.logSizes {
		logSize, logIndexBytes := head[keysLog2Size], head[keysLog2IndexBytes]
		if logSize > 40 || logIndexBytes > logSize+3 {
			return k, fmt.Errorf("%w: dict keys at %#x of size 2^%d with indices of 2^%d bytes", ErrCorrupt, keys, logSize, logIndexBytes)
		}
		size, indexBytes = 1<<logSize, 1<<logIndexBytes
		k.kind = head[keysKind]
	} else {
		size = word(keysSize)
		// DK_IXSIZE in Objects/dictobject.c.
		switch {
		case size <= 0xff:
			indexBytes = size
		case size <= 0xffff:
			indexBytes = 2 * size
		default:
			indexBytes = 4 * size
		}
	}
	if k.entries > size || k.kind > keysSplit {
		return k, fmt.Errorf("%w: dict keys at %#x with %d entries of kind %d in a table of %d", ErrCorrupt, keys, k.entries, k.kind, size)
	}
	if k.entries > maxEntries {
		return k, fmt.Errorf("%w: dict with %d entries, the limit is %d", ErrCorrupt, k.entries, maxEntries)
	}
	k.first = keys + at.header + indexBytes
	return k, nil
}

// lookup returns the value of a str key in a dict, 0 when the key is not there. The
// hash is of no use, as it is keyed by a secret: entries are compared one by one.
func (im *image) lookup(dict uint64, key string) (uint64, error) {
	var value uint64
	length := uint64(len([]rune(key)))
	err := im.items(dict, func(name, at uint64) (bool, error) {
		same, err := im.equal(name, key, length)
		if err != nil || !same {
			return false, err
		}
		value, err = im.liveWord(at)
		return value != 0, err
	})
	if err != nil {
		return 0, err
	}
	return value, nil
}

// items calls f with the key of each entry of a dict and where its value is, which may be NULL,
// until f says that it has seen enough. What f was told means nothing when items fails.
func (im *image) items(dict uint64, f func(key, valueAt uint64) (bool, error)) error {
	ok, err := im.isInstance(dict, "PyDict_Type")
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("%w: object at %#x is no dict", ErrCorrupt, dict)
	}
	before, err := im.dictHead(dict)
	if err != nil {
		return err
	}
	// A dict that is being resized may have its new keys before they have its entries (dictresize in
	// Objects/dictobject.c): it would pass for an empty one.
	if before.used > before.table.entries {
		return fmt.Errorf("dict at %#x: %w", dict, ErrTorn)
	}
	values := uint64(0)
	switch {
	case before.values != 0:
		values = before.values + im.layout.splitValues
	case before.table.kind == keysSplit:
		return fmt.Errorf("%w: dict at %#x is split and has no values", ErrCorrupt, dict)
	}
	err = im.entries(before.table, values, f)
	// Whatever was found or went wrong while the dict changed says nothing.
	after, headErr := im.dictHead(dict)
	if headErr == nil && after != before {
		return fmt.Errorf("dict at %#x: %w", dict, ErrTorn)
	}
	return errors.Join(err, headErr)
}

// entries goes through a dict's keys. Their values are in the entries, or at values.
func (im *image) entries(keys dictKeys, values uint64, f func(key, valueAt uint64) (bool, error)) error {
	size, keyAt := keys.entry()
	raw := make([]byte, keys.entries*size)
	if err := im.readLive(raw, keys.first); err != nil {
		return err
	}
	for i := range keys.entries {
		name := binary.LittleEndian.Uint64(raw[i*size+keyAt:])
		if name == 0 {
			continue // deleted
		}
		at := keys.first + i*size + keyAt + 8
		if values != 0 {
			at = values + 8*i
		}
		if done, err := f(name, at); err != nil || done {
			return err
		}
	}
	return nil
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

package pyframes

import (
	"encoding/binary"
	"fmt"
)

// An attribute is what a name is bound to. The zero value says that there is none.
type attribute struct {
	object uint64 // the object that it is
	what   string // instead, a predicate that says why it leads to no Python function
}

// cFunction is what a static type of the core has: from 3.12 on its namespace cannot be read.
var cFunction = attribute{what: "is a C function"}

func (a attribute) found() bool { return a != attribute{} }

// attribute finds a name as inspect.getattr_static does: in the namespaces of the object, of its
// class and that class's bases, running nothing. A member that an object holds in a slot is read.
func (im *image) attribute(owner uint64, name string) (attribute, error) {
	class, err := im.word(owner, objectType)
	if err != nil {
		return attribute{}, err
	}
	if is, err := im.isClass(owner); err != nil {
		return attribute{}, err
	} else if is {
		// Of a class its bases come first, then what its metaclass has.
		if a, err := im.inBases(owner, name); a.found() || err != nil {
			return a, err
		}
		return im.inBases(class, name)
	}
	if is, err := im.isInstance(owner, "PyProperty_Type"); err != nil {
		return attribute{}, err
	} else if offset, accessor := propertyAccessors[name]; is && accessor {
		function, err := im.word(owner, offset)
		if err == nil && function == 0 {
			return attribute{what: "is missing: the property has none"}, nil
		}
		return attribute{object: function}, err
	}
	inClass, err := im.inBases(class, name)
	if err != nil {
		return attribute{}, err
	}
	if inClass.object != 0 {
		// What has a setter comes before the object's own namespace.
		is, err := im.isDataDescriptor(inClass.object)
		if err != nil {
			return attribute{}, err
		}
		if is {
			return im.bind(inClass, owner)
		}
	} else if !inClass.found() {
		member, err := im.nativeMember(class, name)
		if err != nil {
			return attribute{}, err
		}
		if member != 0 {
			value, err := im.word(owner, member)
			return attribute{object: value}, err
		}
	}
	own, err := im.ownAttribute(owner, class, name)
	if own != 0 || err != nil {
		return attribute{object: own}, err
	}
	return inClass, nil
}

// propertyAccessors are the names of a property's functions, as it has them and as the
// decorators are called that set them.
var propertyAccessors = map[string]uint64{
	"fget": propertyGetter, "getter": propertyGetter,
	"fset": propertySetter, "setter": propertySetter,
	"fdel": propertyDeleter, "deleter": propertyDeleter,
}

// inBases finds a name in the namespaces of a class and its bases.
func (im *image) inBases(class uint64, name string) (attribute, error) {
	mro, err := im.word(class, typeMRO)
	if err != nil {
		return attribute{}, err
	}
	n, err := im.tupleLen(mro)
	if err != nil {
		return attribute{}, err
	}
	for i := range n {
		base, err := im.tupleItem(mro, i)
		if err != nil {
			return attribute{}, err
		}
		dict, err := im.word(base, typeDict)
		if err != nil {
			return attribute{}, err
		}
		if dict == 0 {
			native, err := im.isNative(base, name)
			if err != nil {
				return attribute{}, err
			}
			if native {
				return cFunction, nil
			}
			continue
		}
		key, err := im.mangled(base, name)
		if err != nil {
			return attribute{}, err
		}
		for _, key := range key {
			if found, err := im.lookup(dict, key); found != 0 || err != nil {
				return attribute{object: found}, err
			}
		}
	}
	return attribute{}, nil
}

// mangled returns the keys that a name may have in a class's namespace: a private name that is
// written as in the source is there with the class's name before it.
func (im *image) mangled(class uint64, name string) ([]string, error) {
	if len(name) < 3 || name[:2] != "__" || name[len(name)-2:] == "__" {
		return []string{name}, nil
	}
	at, err := im.word(class, im.layout.typeName)
	if err != nil {
		return nil, err
	}
	text, err := readCString(im.mem, at)
	if err != nil {
		return nil, err
	}
	for len(text) > 0 && text[0] == '_' {
		text = text[1:]
	}
	if text == "" {
		return []string{name}, nil
	}
	return []string{name, "_" + text + name}, nil
}

// slots are the special methods that a static type of the core may have, by where PyTypeObject
// has their function (Include/cpython/object.h).
var slots = map[string]uint64{
	"__repr__": 88, "__hash__": 120, "__call__": 128, "__str__": 136, "__getattribute__": 144,
	"__setattr__": 152, "__delattr__": 152, "__eq__": 200, "__ne__": 200, "__lt__": 200, "__le__": 200,
	"__gt__": 200, "__ge__": 200, "__iter__": 216, "__next__": 224, "__get__": 272,
	"__set__": typeDescrSet, "__delete__": typeDescrSet, "__init__": 296, "__new__": 312,
}

// isNative reports whether a static type of the core has a name. Members that an object holds
// are not among them.
func (im *image) isNative(class uint64, name string) (bool, error) {
	if slot := slots[name]; slot != 0 {
		function, err := im.word(class, slot)
		if function != 0 || err != nil {
			return function != 0, err
		}
	}
	for _, list := range []struct{ offset, size uint64 }{{typeMethods, methodDefSize}, {typeGetSet, getSetDefSize}} {
		entry, err := im.defined(class, list.offset, list.size, name)
		if entry != 0 || err != nil {
			return entry != 0, err
		}
	}
	return false, nil
}

// maxDefinitions bounds the lists of methods and members of a static type; str has the most, with
// under 60.
const maxDefinitions = 512

// defined returns the entry with a name in one of a static type's lists, each of which begins
// with its name; 0 when there is none.
func (im *image) defined(class, offset, size uint64, name string) (uint64, error) {
	list, err := im.word(class, offset)
	if err != nil || list == 0 {
		return 0, err
	}
	for i := range uint64(maxDefinitions) {
		entry := list + i*size
		text, err := im.word(entry, 0)
		if err != nil || text == 0 {
			return 0, err
		}
		got, err := readCString(im.mem, text)
		if err != nil || got == name {
			return entry, err
		}
	}
	return 0, fmt.Errorf("%w: a type with more than %d definitions", ErrCorrupt, maxDefinitions)
}

// nativeMember returns where the objects of a class hold a member that a static type of the core
// defines, 0 when none does.
func (im *image) nativeMember(class uint64, name string) (uint64, error) {
	for range maxBases {
		if class == 0 {
			return 0, nil
		}
		dict, err := im.word(class, typeDict)
		if err != nil {
			return 0, err
		}
		if dict == 0 {
			entry, err := im.defined(class, typeMembers, memberDefSize, name)
			if err != nil {
				return 0, err
			}
			if entry != 0 {
				return im.memberOffset(entry)
			}
		}
		if class, err = im.word(class, typeBase); err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("%w: a class with more than %d bases", ErrCorrupt, maxBases)
}

// maxBases bounds the chain of tp_base.
const maxBases = 64

// memberOffset returns where an object holds the member that a PyMemberDef defines, 0 when
// that is no object.
func (im *image) memberOffset(entry uint64) (uint64, error) {
	kind, err := im.uint32(entry, memberType)
	if err != nil || kind != memberObject && kind != memberObjectX {
		return 0, err
	}
	offset, err := im.word(entry, memberOffset)
	if err == nil && offset > maxOffset {
		err = fmt.Errorf("%w: a member at offset %#x", ErrCorrupt, offset)
	}
	return offset, err
}

// isDataDescriptor reports whether the object's type has __set__.
func (im *image) isDataDescriptor(object uint64) (bool, error) {
	t, err := im.word(object, objectType)
	if err != nil {
		return false, err
	}
	set, err := im.word(t, typeDescrSet)
	return set != 0, err
}

// bind reads the member of owner that a member descriptor stands for; anything else stays what
// it is.
func (im *image) bind(a attribute, owner uint64) (attribute, error) {
	if is, err := im.is(a.object, "PyMemberDescr_Type"); err != nil || !is {
		return a, err
	}
	entry, err := im.word(a.object, descrMember)
	if err != nil {
		return attribute{}, err
	}
	offset, err := im.memberOffset(entry)
	if err != nil || offset == 0 {
		return a, err
	}
	value, err := im.word(owner, offset)
	return attribute{object: value}, err
}

// ownAttribute finds a name in an object's own namespace, 0 when it is not there.
func (im *image) ownAttribute(object, class uint64, name string) (uint64, error) {
	flags, err := im.word(class, im.layout.typeFlags)
	if err != nil {
		return 0, err
	}
	if im.layout.inline != noInlineValues && flags&typeManagedDictFlag != 0 {
		return im.managedAttribute(object, class, flags, name)
	}
	raw, err := im.word(class, typeDictOffset)
	if err != nil || raw == 0 {
		return 0, err
	}
	offset := int64(raw)
	if offset < 0 {
		size, err := im.objectSize(object, class, flags)
		if err != nil {
			return 0, err
		}
		offset += int64(size)
	}
	if offset <= 0 || offset > maxObject {
		return 0, fmt.Errorf("%w: object at %#x with its dict at offset %d", ErrCorrupt, object, offset)
	}
	dict, err := im.word(object, uint64(offset))
	if err != nil || dict == 0 {
		return 0, err
	}
	return im.lookup(dict, name)
}

// maxObject bounds the objects of variable size whose dict is read, at their end.
const maxObject = 1 << 30

// objectSize is _PyObject_VAR_SIZE in Include/cpython/objimpl.h.
func (im *image) objectSize(object, class, flags uint64) (uint64, error) {
	basic, err := im.word(class, typeBasicSize)
	if err != nil {
		return 0, err
	}
	item, err := im.word(class, typeItemSize)
	if err != nil {
		return 0, err
	}
	raw, err := im.word(object, varSize)
	if err != nil {
		return 0, err
	}
	n := raw
	if flags&typeLongFlag != 0 && im.layout.inline >= valuesTagged {
		n >>= 3 // lv_tag of PyLongObject, Include/cpython/longintrepr.h
	} else if int64(n) < 0 {
		n = -n
	}
	if basic > maxObject || item > maxObject || n > maxObject || n*item > maxObject {
		return 0, fmt.Errorf("%w: object at %#x of %d items of %d bytes", ErrCorrupt, object, n, item)
	}
	return (basic + n*item + 7) &^ 7, nil
}

// managedAttribute finds a name in the namespace of an object whose type manages where that is.
func (im *image) managedAttribute(object, class, flags uint64, name string) (uint64, error) {
	const word = 8
	dict, err := readWord(im.mem, object-3*word)
	if err != nil {
		return 0, err
	}
	values := uint64(0)
	switch im.layout.inline {
	case valuesBefore:
		if values, err = readWord(im.mem, object-4*word); err != nil {
			return 0, err
		}
	case valuesTagged:
		if dict&1 != 0 {
			dict, values = 0, dict+1
		}
	case valuesAfter:
		if dict == 0 && flags&typeInlineValuesFlag != 0 {
			size, err := im.word(class, typeBasicSize)
			if err != nil {
				return 0, err
			}
			var head [4]byte // capacity, size, embedded, valid
			if err := im.mem.readAt(head[:], object+size); err != nil {
				return 0, err
			}
			if head[3] != 0 {
				values = object + size
			}
		}
	}
	if values == 0 {
		if dict == 0 {
			return 0, nil
		}
		return im.lookup(dict, name)
	}
	keys, err := im.word(class, im.layout.cachedKeys)
	if err != nil {
		return 0, err
	}
	table, err := im.dictKeys(keys)
	if err != nil {
		return 0, err
	}
	length := uint64(len([]rune(name)))
	var found uint64
	err = im.entries(table, values+im.layout.splitValues, func(key, at uint64) (bool, error) {
		same, err := im.equal(key, name, length)
		if err != nil || !same {
			return false, err
		}
		found, err = im.liveWord(at)
		return true, err
	})
	if err != nil {
		return 0, err
	}
	// The object may have been given a dict in between.
	now, err := im.liveWord(object - 3*word)
	if err != nil {
		return 0, err
	}
	var before [word]byte
	if err := im.mem.readAt(before[:], object-3*word); err != nil {
		return 0, err
	}
	if now != binary.LittleEndian.Uint64(before[:]) {
		return 0, fmt.Errorf("object at %#x: %w", object, ErrTorn)
	}
	return found, nil
}

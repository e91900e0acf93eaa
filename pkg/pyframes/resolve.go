package pyframes

import (
	"errors"
	"fmt"
	"strings"

	"sca-probe/pkg/rc"
)

// A Function is a Python function in a process, found by its target.
type Function struct {
	Addr     uint64 // of the PyFunctionObject
	Code     Code   // func_code: what runs now
	Hook     *Hook  // what the engine put into Code; nil when it is not patched
	Original Code   // what ran before the engine patched it; Code when it is not patched
}

// maxWrappers bounds the chain of decorators that is followed to a function.
const maxWrappers = 32

// retries of an answer that the process changed under the reader's eyes.
const retries = 5

// Resolve finds the function that a target names in the process now. Inherited methods
// are found where they are defined; static methods, class methods, bound methods and
// the getters of properties are followed to their function, and what has __wrapped__ to
// what it wraps. An [*UnresolvedError] is the answer that there is no such function.
func (p *Process) Resolve(t rc.Target) (*Function, error) {
	var found *Function
	err := p.answer(func(im *image) (err error) {
		found, err = im.resolve(t)
		return err
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

func (im *image) resolve(t rc.Target) (*Function, error) {
	states, err := im.mainFirst()
	if err != nil {
		return nil, err
	}
	for _, state := range states {
		modules, err := im.modules(state)
		if err != nil {
			return nil, err
		}
		module, err := im.lookup(modules, t.Module)
		if err != nil {
			return nil, err
		}
		if module != 0 {
			return im.resolveIn(module, t)
		}
	}
	return nil, &UnresolvedError{t, NotImported, "module " + t.Module + " is not imported"}
}

func (im *image) resolveIn(module uint64, t rc.Target) (*Function, error) {
	if ok, err := im.isInstance(module, "PyModule_Type"); err != nil {
		return nil, err
	} else if !ok {
		// None in sys.modules forbids the import; other objects answer by __getattr__.
		what, err := im.typeNameOf(module)
		if err != nil {
			return nil, err
		}
		return nil, &UnresolvedError{t, NotFound, fmt.Sprintf("sys.modules[%q] is no module but of type %s", t.Module, what)}
	}
	object, path := module, t.Module
	for name := range strings.SplitSeq(t.QualName, ".") {
		next, where, err := im.attribute(object, path, name)
		if err != nil {
			return nil, err
		}
		if next == 0 {
			return nil, &UnresolvedError{t, NotFound, where}
		}
		object, path = next, path+"."+name
	}
	function, what, err := im.unwrap(object)
	if err != nil {
		return nil, err
	}
	if what != "" {
		return nil, &UnresolvedError{t, NotPythonFunction, path + " " + what}
	}
	code, err := im.word(function, functionCode)
	if err != nil {
		return nil, err
	}
	f := &Function{Addr: function}
	if f.Code, err = im.code(code); err != nil {
		return nil, err
	}
	f.Original = f.Code
	if f.Hook, err = im.hookOf(code); err != nil || f.Hook == nil {
		return f, err
	}
	if f.Original, err = im.code(f.Hook.Original); err != nil {
		return nil, fmt.Errorf("original code of %s: %w", t, err)
	}
	return f, nil
}

// attribute finds a name in a module's or class's namespace, without running anything.
// When it is not there, it returns 0 and a clause that says where was looked.
func (im *image) attribute(owner uint64, path, name string) (uint64, string, error) {
	missing := path + " has no " + name
	if class, err := im.isClass(owner); err != nil {
		return 0, "", err
	} else if class {
		mro, err := im.word(owner, typeMRO)
		if err != nil {
			return 0, "", err
		}
		n, err := im.tupleLen(mro)
		if err != nil {
			return 0, "", err
		}
		for i := range n {
			base, err := im.tupleItem(mro, i)
			if err != nil {
				return 0, "", err
			}
			dict, err := im.word(base, typeDict)
			if err != nil {
				return 0, "", err
			}
			if dict == 0 {
				// A static type of the core, from 3.12 on. All it has is C.
				continue
			}
			if found, err := im.lookup(dict, name); found != 0 || err != nil {
				return found, "", err
			}
		}
		return 0, missing + " that is Python", nil
	}
	if module, err := im.isInstance(owner, "PyModule_Type"); err != nil {
		return 0, "", err
	} else if module {
		dict, err := im.word(owner, moduleDict)
		if err != nil {
			return 0, "", err
		}
		found, err := im.lookup(dict, name)
		return found, missing, err
	}
	what, err := im.typeNameOf(owner)
	return 0, path + " is of type " + what + ", neither a module nor a class", err
}

// unwrap follows descriptors and __wrapped__ to a PyFunctionObject. When there is none,
// it returns a predicate that says what is there instead.
func (im *image) unwrap(object uint64) (uint64, string, error) {
	for range maxWrappers + 1 {
		inner := uint64(0)
		for symbol, offset := range map[string]uint64{
			"PyStaticMethod_Type": wrapperCallable, "PyClassMethod_Type": wrapperCallable,
			"PyProperty_Type": propertyGetter, "PyMethod_Type": methodFunction,
		} {
			is, err := im.isInstance(object, symbol)
			if err != nil {
				return 0, "", err
			}
			if is {
				if inner, err = im.word(object, offset); err != nil {
					return 0, "", err
				}
				if inner == 0 {
					return 0, "is a property without a getter", nil
				}
			}
		}
		if inner == 0 {
			if class, err := im.isClass(object); err != nil {
				return 0, "", err
			} else if class {
				return 0, "is a class", nil
			}
			var err error
			if inner, err = im.wrapped(object); err != nil {
				return 0, "", err
			}
		}
		if inner == 0 {
			if is, err := im.is(object, "PyFunction_Type"); err != nil || is {
				return object, "", err
			}
			what, err := im.typeNameOf(object)
			if err != nil {
				return 0, "", err
			}
			switch what {
			case "builtin_function_or_method", "method_descriptor", "classmethod_descriptor", "wrapper_descriptor", "method-wrapper":
				return 0, "is a C function", nil
			case "module":
				return 0, "is a module", nil
			}
			return 0, "is of type " + what + ", not a Python function", nil
		}
		object = inner
	}
	return 0, fmt.Sprintf("is wrapped more than %d times", maxWrappers), nil
}

// wrapped returns __wrapped__ of an object that has a plain __dict__ slot, as functions
// and the C wrapper of functools.lru_cache do, else 0.
func (im *image) wrapped(object uint64) (uint64, error) {
	t, err := im.word(object, objectType)
	if err != nil {
		return 0, err
	}
	offset, err := im.word(t, typeDictOffset)
	// Negative: counted from the end, or managed by the type. Such objects are no wrappers
	// from the standard library.
	if err != nil || offset == 0 || offset > pageSize {
		return 0, err
	}
	dict, err := im.word(object, offset)
	if err != nil || dict == 0 {
		return 0, err
	}
	return im.lookup(dict, "__wrapped__")
}

// answer runs f on a fresh view of the process, again when the process changed what was
// read, and lets nothing pass that was read from anything but the interpreter opened.
func (p *Process) answer(f func(*image) error) error {
	var err error
	for range retries {
		view := p.image
		view.mem = newPageCache(p.image.mem)
		err = f(&view)
		if gone := p.gone(); gone != nil {
			return gone
		}
		var unresolved *UnresolvedError
		if err == nil || errors.As(err, &unresolved) || errors.Is(err, ErrPermission) {
			break
		}
		// Garbage is most often an object that was freed in between.
	}
	return err
}

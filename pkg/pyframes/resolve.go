package pyframes

import (
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"sca-probe/pkg/rc"
)

// A Function is a Python function in a process, found by its target.
type Function struct {
	// Addr is that of the PyFunctionObject; 0 when the target names a function within another
	// (outer.<locals>.inner), whose code object is there before any function is made from it.
	Addr uint64
	Code Code  // func_code: what runs now
	Hook *Hook // what the engine put into Code; nil when it is not patched
	// Original is what ran before the engine put Code in place; Code when it did not. It differs
	// also where a function is not patched but one within it is.
	Original Code
}

// maxWrappers bounds the chain of decorators that is followed to a function.
const maxWrappers = 32

// Resolve finds the function that a target names in the process now. Names are looked up as
// inspect.getattr_static does, running nothing: in modules, classes with their bases and
// metaclass, and objects; a private name may be written as in the source. Of a property, fget,
// fset and fdel (or getter, setter and deleter) are its functions. Names after <locals> are those of
// code objects in the constants of the function before it.
//
// What is found is followed to the innermost function: through __wrapped__, static, class and
// bound methods, properties (the getter), functools.partial, partialmethod, cached_property
// and singledispatchmethod, and wrapt's proxies. An [*UnresolvedError] is the answer that there
// is no such function. testenv/subjects/targets.py has a case of each form.
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

// locals is what __qualname__ has between a function and what is defined in it.
const locals = "<locals>"

func (im *image) resolveIn(module uint64, t rc.Target) (*Function, error) {
	object, path := module, t.Module
	names := strings.Split(t.QualName, ".")
	for i, name := range names {
		if name == locals {
			return im.resolveLocal(object, path, names[i+1:], t)
		}
		next, err := im.attribute(object, name)
		if err != nil {
			return nil, err
		}
		if next.what != "" {
			return nil, &UnresolvedError{t, NotPythonFunction, path + "." + name + " " + next.what}
		}
		if next.object == 0 {
			return nil, im.missing(object, path, name, t)
		}
		object, path = next.object, path+"."+name
	}
	function, what, err := im.unwrap(object)
	if err != nil {
		return nil, err
	}
	if what != "" {
		return nil, &UnresolvedError{t, NotPythonFunction, path + " " + what}
	}
	code, err := im.functionCode(function)
	if err != nil {
		return nil, err
	}
	return im.complete(&Function{Addr: function, Code: code}, t)
}

// missing says that a name is not there, and where was looked.
func (im *image) missing(owner uint64, path, name string, t rc.Target) error {
	what, err := im.typeNameOf(owner)
	if err != nil {
		return err
	}
	class, err := im.isClass(owner)
	if err != nil {
		return err
	}
	switch {
	case what == "module":
		what = "module " + path
	case class:
		what = "class " + path + " and its bases have no " + name
		return &UnresolvedError{t, NotFound, what}
	case path == t.Module:
		what = fmt.Sprintf("sys.modules[%q], of type %s,", path, what)
	default:
		what = path + ", of type " + what + ","
	}
	return &UnresolvedError{t, NotFound, what + " has no " + name}
}

// functionCode reads the code object of a function. Before 3.11 only the function has the qualified name,
// unless functools.wraps gave it that of another.
func (im *image) functionCode(function uint64) (Code, error) {
	at, err := im.word(function, im.layout.functionCode)
	if err != nil {
		return Code{}, err
	}
	c, err := im.code(at)
	if err != nil || im.layout.codeQualName != 0 {
		return c, err
	}
	name, err := im.textAt(function, im.layout.functionQualName)
	if err == nil && (name == c.Name || strings.HasSuffix(name, "."+c.Name)) {
		c.QualName = name
	}
	return c, err
}

// complete adds to a function what the engine did to it.
func (im *image) complete(f *Function, t rc.Target) (*Function, error) {
	f.Original = f.Code
	hook, err := im.hookOf(f.Code.Addr)
	if err != nil || hook == nil {
		return f, err
	}
	if hook.isTarget() {
		f.Hook = hook
	}
	if f.Original, err = im.code(hook.Original); err != nil {
		return nil, fmt.Errorf("original code of %s: %w", t, err)
	}
	if im.layout.codeQualName == 0 {
		f.Original.QualName = f.Code.QualName
	}
	return f, nil
}

// resolveLocal finds a function that is defined within the function at path, by the names of
// functions and classes on the way to it.
func (im *image) resolveLocal(object uint64, path string, names []string, t rc.Target) (*Function, error) {
	function, what, err := im.unwrap(object)
	if err != nil {
		return nil, err
	}
	if what != "" {
		return nil, &UnresolvedError{t, NotFound, path + " " + what + ", and so has no " + locals}
	}
	code, err := im.functionCode(function)
	if err != nil {
		return nil, err
	}
	path += "." + locals
	if len(names) == 0 {
		return nil, &UnresolvedError{t, NotFound, path + " names no function: add the name of one that is defined there"}
	}
	for i, name := range names {
		inFunction := i == 0 || names[i-1] == locals
		if name == locals {
			if inFunction || !code.IsFunction() {
				return nil, &UnresolvedError{t, NotFound, path + " is no function, and so has no " + locals}
			}
			path += "." + name
			continue
		}
		if !inFunction && code.IsFunction() {
			return nil, &UnresolvedError{t, NotFound, path + " is a function: what it defines is named " + path + "." + locals + "." + name}
		}
		found, err := im.codeConstants(code, name)
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			return nil, &UnresolvedError{t, NotFound, path + " defines no function or class " + name}
		}
		if len(found) > 1 {
			return nil, &UnresolvedError{t, Ambiguous, fmt.Sprintf("%s defines %d functions or classes %s", path, len(found), name)}
		}
		if im.layout.codeQualName == 0 {
			found[0].QualName = qualified(code, name)
		}
		code, path = found[0], path+"."+name
	}
	switch {
	case names[len(names)-1] == locals:
		return nil, &UnresolvedError{t, NotFound, path + " names no function: add the name of one that is defined there"}
	case !code.IsFunction():
		return nil, &UnresolvedError{t, NotPythonFunction, path + " is a class"}
	}
	return im.complete(&Function{Code: code}, t)
}

// qualified returns the qualified name of what is defined within a function or class.
func qualified(within Code, name string) string {
	if within.IsFunction() {
		return within.QualName + "." + locals + "." + name
	}
	return within.QualName + "." + name
}

// codesWithin yields the code objects among a code object's constants, up to the first error.
func (im *image) codesWithin(c Code) iter.Seq2[Code, error] {
	return func(yield func(Code, error) bool) {
		consts, err := im.word(c.Addr, im.layout.codeConsts)
		if err != nil {
			yield(Code{}, err)
			return
		}
		n, err := im.tupleLen(consts)
		if err != nil {
			yield(Code{}, err)
			return
		}
		for i := range n {
			inner, isCode, err := im.codeItem(consts, i)
			if (err != nil || isCode) && !yield(inner, err) || err != nil {
				return
			}
		}
	}
}

// codeItem reads an item of a tuple that is a code object; it reports whether it is.
func (im *image) codeItem(tuple, i uint64) (Code, bool, error) {
	at, err := im.tupleItem(tuple, i)
	if err != nil {
		return Code{}, false, err
	}
	if is, err := im.is(at, "PyCode_Type"); err != nil || !is {
		return Code{}, false, err
	}
	inner, err := im.code(at)
	return inner, err == nil, err
}

// codeConstants returns the code objects with a name among a code object's constants.
func (im *image) codeConstants(c Code, name string) ([]Code, error) {
	var found []Code
	for inner, err := range im.codesWithin(c) {
		if err != nil {
			return nil, err
		}
		switch inner.Name {
		case name:
			found = append(found, inner)
		case "<generic parameters of " + name + ">":
			// From 3.12 on, what has type parameters is within a code object for them, which
			// __qualname__ leaves out (PEP 695).
			generic, err := im.codeConstants(inner, name)
			if err != nil {
				return nil, err
			}
			found = append(found, generic...)
		}
	}
	return found, nil
}

// Classes in Python whose objects hold a function as func (Lib/functools.py; Django's
// cached_property does too).
var holdFunc = map[string]bool{"cached_property": true, "partialmethod": true, "singledispatchmethod": true}

// The class in C that wrapt's proxies derive from, as a static type in wrapt 1 and a heap type in
// wrapt 2: struct WraptObjectProxyObject begins with dict and wrapped (src/wrapt/_wrappers.c).
const (
	proxyWrapped = 24
	proxySize    = 40 // and a weak reference list
)

// inner returns what an object wraps or leads to, 0 when that is nothing; or a predicate that says
// why it leads nowhere.
func (im *image) inner(object uint64) (uint64, string, error) {
	for _, known := range []struct {
		symbol string
		offset uint64
	}{
		{"PyStaticMethod_Type", wrapperCallable}, {"PyClassMethod_Type", wrapperCallable},
		{"PyProperty_Type", propertyGetter}, {"PyMethod_Type", methodFunction},
	} {
		is, err := im.isInstance(object, known.symbol)
		if err != nil {
			return 0, "", err
		}
		if !is {
			continue
		}
		inner, err := im.word(object, known.offset)
		if err == nil && inner == 0 {
			return 0, "is a property without a getter", nil
		}
		return inner, "", err
	}
	if class, err := im.isClass(object); err != nil {
		return 0, "", err
	} else if class {
		return 0, "is a class", nil
	}
	class, err := im.word(object, objectType)
	if err != nil {
		return 0, "", err
	}
	for range maxBases {
		if class == 0 {
			break
		}
		at, err := im.word(class, im.layout.typeName)
		if err != nil {
			return 0, "", err
		}
		name, err := readCString(im.mem, at)
		if err != nil {
			return 0, "", err
		}
		flags, err := im.word(class, im.layout.typeFlags)
		if err != nil {
			return 0, "", err
		}
		switch {
		case name == "functools.partial":
			inner, err := im.word(object, partialFunction)
			return inner, "", err
		case holdFunc[name] && flags&typeHeapFlag != 0:
			held, err := im.attribute(object, "func")
			if err != nil || held.object != 0 {
				return held.object, "", err
			}
		case name == "ObjectProxy" && flags&typeHeapFlag == 0, name == "_wrappers.ObjectProxy":
			size, err := im.word(class, typeBasicSize)
			if err != nil {
				return 0, "", err
			}
			if size >= proxySize {
				inner, err := im.word(object, proxyWrapped)
				return inner, "", err
			}
		}
		if class, err = im.word(class, typeBase); err != nil {
			return 0, "", err
		}
	}
	return im.wrapped(object)
}

// wrapped returns __wrapped__ of an object that holds it itself, 0 when it does not.
func (im *image) wrapped(object uint64) (uint64, string, error) {
	class, err := im.word(object, objectType)
	if err != nil {
		return 0, "", err
	}
	inner, err := im.ownAttribute(object, class, "__wrapped__")
	if inner != 0 || err != nil {
		return inner, "", err
	}
	slot, err := im.inBases(class, "__wrapped__")
	if err != nil || slot.object == 0 {
		return 0, "", err
	}
	held, err := im.bind(slot, object)
	if err != nil || held == slot {
		return 0, "", err
	}
	return held.object, "", nil
}

// unwrap follows descriptors and wrappers to a PyFunctionObject. When there is none, it returns a
// predicate that says what is there instead.
func (im *image) unwrap(object uint64) (uint64, string, error) {
	for range maxWrappers + 1 {
		inner, what, err := im.inner(object)
		if what != "" || err != nil {
			return 0, what, err
		}
		if inner != 0 {
			object = inner
			continue
		}
		if is, err := im.is(object, "PyFunction_Type"); err != nil || is {
			return object, "", err
		}
		name, err := im.typeNameOf(object)
		if err != nil {
			return 0, "", err
		}
		switch name {
		case "builtin_function_or_method", "method_descriptor", "classmethod_descriptor", "wrapper_descriptor", "method-wrapper":
			return 0, "is a C function", nil
		case "module":
			return 0, "is a module", nil
		case "NoneType":
			return 0, "is None", nil
		}
		return 0, "is of type " + name + ", not a Python function", nil
	}
	return 0, fmt.Sprintf("is wrapped more than %d times", maxWrappers), nil
}

// answer runs f on a fresh view of the process, again when the process changed what was
// read, and lets nothing pass that was read from anything but the interpreter opened.
func (p *Process) answer(f func(*image) error) error {
	return again(func() (final bool, err error) {
		view := p.image
		view.mem = newPageCache(p.image.mem)
		err = f(&view)
		if gone := p.Gone(); gone != nil {
			return true, gone
		}
		var unresolved *UnresolvedError
		// Garbage is most often an object that was freed in between.
		return errors.As(err, &unresolved) || errors.Is(err, ErrPermission) || errors.Is(err, ErrAmbiguousEvidence) || errors.Is(err, ErrNotReady), err
	})
}

// An answer that the process changed under the reader's eyes is tried again, a few times at once and then with
// pauses, each twice the one before: a process that has lost its CPU in the middle of a change stays there until
// it is given one again. The pauses are short, as whoever follows many processes cannot wait long for one.
const (
	tries      = 10
	quickTries = 5
	firstPause = time.Millisecond
)

// again tries until there is no error, or one that is final.
func again(try func() (final bool, err error)) error {
	pause := firstPause
	for i := 1; ; i++ {
		final, err := try()
		if final || err == nil || i == tries {
			return err
		}
		if i >= quickTries {
			time.Sleep(pause)
			pause *= 2
		}
	}
}

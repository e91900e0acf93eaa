package pyframes

import (
	"errors"
	"fmt"
	"slices"
)

// mainFirst returns the addresses of the interpreter states, the main one first. There
// is more than one only where subinterpreters are used.
func (im *image) mainFirst() ([]uint64, error) {
	state, err := im.word(im.listHead, im.layout.interpretersHead)
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
	// First, as before there is one the types may not have been relocated by the dynamic linker.
	states, err := im.mainFirst()
	if err != nil {
		return mismatch("the list of interpreters", err)
	}
	if err := im.checkTypes(); err != nil {
		return mismatch("a built-in type", err)
	}
	modules, err := im.modules(states[0])
	if err != nil {
		return mismatch("sys.modules", err)
	}
	if err := im.mustBe(modules, "PyDict_Type"); err != nil {
		return mismatch("sys.modules", err)
	}
	for _, known := range []struct {
		module string
		test   func(namespace uint64) error
	}{
		{"builtins", func(uint64) error { return nil }},
		{"sys", func(namespace uint64) error { return im.checkVersion(namespace, v) }},
		{bootstrap, im.checkFunction},
	} {
		module, err := im.lookup(modules, known.module)
		if err != nil {
			return mismatch("module "+known.module, err)
		}
		if module == 0 {
			// sys.modules is there before its first entries, and after them.
			return ErrNotReady
		}
		if ok, err := im.isInstance(module, "PyModule_Type"); err != nil || !ok {
			return mismatch("module "+known.module, err)
		}
		namespace, err := im.word(module, moduleDict)
		if err != nil {
			return mismatch("the namespace of module "+known.module, err)
		}
		own, err := im.lookup(namespace, "__name__")
		if err != nil || own == 0 {
			return mismatch("the name of module "+known.module, err)
		}
		if text, err := im.str(own); err != nil || text != known.module && text != "importlib._bootstrap" {
			return mismatch("the name of module "+known.module, err)
		}
		if err := known.test(namespace); err != nil {
			return mismatch("what module "+known.module+" holds", err)
		}
	}
	return nil
}

// checkVersion compares sys.hexversion with the version. From 3.11 on Py_Version has said it.
func (im *image) checkVersion(sys uint64, v Version) error {
	if v.Minor >= wantedSince["Py_Version"] {
		return nil
	}
	object, err := im.lookup(sys, "hexversion")
	if err != nil || object == 0 {
		return errors.Join(fmt.Errorf("%w: no sys.hexversion", ErrCorrupt), err)
	}
	hex, err := im.smallInt(object)
	if err != nil {
		return err
	}
	var running Interpreter
	if running.setVersion(hex); running.Version != v {
		return fmt.Errorf("%w: sys.hexversion is %#x", ErrCorrupt, hex)
	}
	return nil
}

// A function that every interpreter has: it imports modules, and is frozen into the build.
const (
	bootstrap         = "_frozen_importlib"
	bootstrapFunction = "_find_spec"
	bootstrapFile     = "<frozen importlib._bootstrap>"
)

// checkFunction compares the members of a function and of its code object with what is known
// of them.
func (im *image) checkFunction(namespace uint64) error {
	function, err := im.lookup(namespace, bootstrapFunction)
	if err != nil {
		return err
	}
	if function == 0 { // the module is in sys.modules before its code has run
		return ErrNotReady
	}
	if err := im.mustBe(function, "PyFunction_Type"); err != nil {
		return err
	}
	name, err := im.textAt(function, im.layout.functionQualName)
	if err != nil || name != bootstrapFunction {
		return errors.Join(fmt.Errorf("%w: %s has the name %.40q", ErrCorrupt, bootstrapFunction, name), err)
	}
	at, err := im.word(function, im.layout.functionCode)
	if err != nil {
		return err
	}
	// The engine may have patched it: what stays are its names, lines and flags.
	c, err := im.code(at)
	if err != nil {
		return err
	}
	if c.Name != bootstrapFunction || c.QualName != bootstrapFunction || c.Filename != bootstrapFile ||
		c.FirstLine < 1 || c.FirstLine > 1<<16 || c.Flags&(kindFlags|codeOptimized|codeNewLocals) != codeOptimized|codeNewLocals || c.InstructionCount < 16 || c.InstructionCount > 1<<12 {
		return fmt.Errorf("%w: the code object of %s reads %+v", ErrCorrupt, bootstrapFunction, c)
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

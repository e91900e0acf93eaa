package pyframes

import (
	"errors"
	"fmt"
)

// maxSearchPath bounds sys.path.
const maxSearchPath = 4096

// SearchPath returns sys.path of the main interpreter: where modules are imported from, as the
// process names it. Entries that are no str are left out.
func (p *Process) SearchPath() ([]string, error) {
	var found []string
	err := p.answer(func(im *image) (err error) {
		found, err = im.searchPath()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("sys.path of process %d: %w", p.pid, err)
	}
	return found, nil
}

// MainFile returns __file__ of the module __main__: the program, as its code objects name it. It is ""
// when there is none, as with python -c.
func (p *Process) MainFile() (string, error) { return p.moduleText("__main__", "__file__") }

// Bundle returns sys._MEIPASS: the folder of a program that PyInstaller made, to which the paths in its
// code objects are relative. It is "" in any other program.
func (p *Process) Bundle() (string, error) { return p.moduleText("sys", "_MEIPASS") }

// moduleText reads the str that a name in a module is bound to, "" when it is not.
func (p *Process) moduleText(module, name string) (string, error) {
	var text string
	err := p.answer(func(im *image) error {
		text = ""
		owner, err := im.mainModule(module)
		if err != nil || owner == 0 {
			return err
		}
		value, err := im.attribute(owner, name)
		if err != nil || value.object == 0 {
			return err
		}
		if is, err := im.is(value.object, "PyUnicode_Type"); err != nil || !is {
			return err
		}
		text, err = im.str(value.object)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("%s.%s of process %d: %w", module, name, p.pid, err)
	}
	return text, nil
}

// mainModule finds a module in sys.modules of the main interpreter, 0 when it is not there.
func (im *image) mainModule(name string) (uint64, error) {
	states, err := im.mainFirst()
	if err != nil {
		return 0, err
	}
	modules, err := im.modules(states[0])
	if err != nil {
		return 0, err
	}
	return im.lookup(modules, name)
}

func (im *image) searchPath() ([]string, error) {
	sys, err := im.mainModule("sys")
	if err != nil {
		return nil, err
	}
	if sys == 0 {
		return nil, ErrNotReady
	}
	path, err := im.attribute(sys, "path")
	if err != nil {
		return nil, err
	}
	if path.object == 0 { // it is set after the module is in sys.modules
		return nil, ErrNotReady
	}
	if what, err := im.typeNameOf(path.object); err != nil || what != "list" {
		return nil, errors.Join(fmt.Errorf("%w: sys.path is of type %s", ErrCorrupt, what), err)
	}
	n, err := im.word(path.object, varSize)
	if err != nil {
		return nil, err
	}
	if n > maxSearchPath {
		return nil, fmt.Errorf("%w: sys.path has %d entries", ErrCorrupt, n)
	}
	items, err := im.word(path.object, listItems)
	if err != nil {
		return nil, err
	}
	var found []string
	for i := range n {
		item, err := im.word(items, 8*i)
		if err != nil {
			return nil, err
		}
		if is, err := im.is(item, "PyUnicode_Type"); err != nil {
			return nil, err
		} else if !is {
			continue
		}
		entry, err := im.str(item)
		if err != nil {
			return nil, err
		}
		found = append(found, entry)
	}
	return found, nil
}

// listItems is PyListObject.ob_item (Include/cpython/listobject.h, the same in 3.6 to 3.15).
const listItems = 24

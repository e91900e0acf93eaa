package main

/*
#cgo CFLAGS: -O2 -Wall -Wextra -fvisibility=hidden
#cgo LDFLAGS: -Wl,--unresolved-symbols=ignore-all
#include <stdlib.h>
#include "host.h"
*/
import "C"

import (
	"fmt"
	"runtime"
	"unsafe"

	"sca-probe/pkg/patch"
	"sca-probe/pkg/patch/bytecode"
	"sca-probe/pkg/rc"
)

// interpreter is the CPython that this file is loaded into, as a patch.Host.
type interpreter struct{}

var statusErrors = map[C.enum_sca_status]error{
	C.SCA_NOT_IMPORTED: patch.ErrNotImported,
	C.SCA_NOT_FOUND:    patch.ErrNotFound,
	C.SCA_NOT_FUNCTION: patch.ErrNotFunction,
	C.SCA_CHANGED:      patch.ErrChanged,
	C.SCA_FAILED:       patch.ErrFailed,
	C.SCA_STOPPED:      patch.ErrStopped,
}

func statusError(status C.enum_sca_status, reason *C.char) error {
	err := statusErrors[status]
	if text := C.GoString(reason); text != "" {
		return fmt.Errorf("%w: %s", err, text)
	}
	return err
}

func (interpreter) Read(target rc.Target) (patch.Function, error) {
	module, qualname := C.CString(target.Module), C.CString(target.QualName)
	defer C.free(unsafe.Pointer(module))
	defer C.free(unsafe.Pointer(qualname))
	f := &function{target: target}
	switch status := C.sca_host_read(module, qualname, &f.reading); status {
	case C.SCA_OK, C.SCA_PATCHED:
		return f, nil
	default:
		return nil, statusError(status, &f.reading.reason[0])
	}
}

func (interpreter) Modules() (int, error) {
	if n := C.sca_host_modules(); n >= 0 {
		return int(n), nil
	}
	return 0, patch.ErrStopped
}

type function struct {
	target  rc.Target
	reading C.struct_sca_reading
}

func (f *function) Hook() patch.Hook {
	if f.reading.hook == nil {
		return nil
	}
	return (*hook)(f.reading.hook)
}

func (f *function) Code() bytecode.Code {
	r := &f.reading
	return bytecode.Code{
		Bytecode:       C.GoBytes(unsafe.Pointer(r.bytecode_data), C.int(r.bytecode_size)),
		NumConsts:      int(r.consts),
		StackSize:      int(r.stacksize),
		LineTable:      C.GoBytes(unsafe.Pointer(r.linetable_data), C.int(r.linetable_size)),
		ExceptionTable: C.GoBytes(unsafe.Pointer(r.exceptiontable_data), C.int(r.exceptiontable_size)),
	}
}

func (f *function) Swap(code bytecode.Code) (patch.Hook, error) {
	target := C.CString(f.target.String())
	defer C.free(unsafe.Pointer(target))
	var pinner runtime.Pinner
	defer pinner.Unpin()
	rewrite := C.struct_sca_rewrite{stacksize: C.int(code.StackSize)}
	rewrite.bytecode, rewrite.bytecode_size = pin(&pinner, code.Bytecode)
	rewrite.linetable, rewrite.linetable_size = pin(&pinner, code.LineTable)
	rewrite.exceptiontable, rewrite.exceptiontable_size = pin(&pinner, code.ExceptionTable)
	var h *C.struct_sca_hook
	if status := C.sca_host_swap(&f.reading, target, &rewrite, &h); status != C.SCA_OK {
		return nil, statusError(status, &f.reading.reason[0])
	}
	return (*hook)(h), nil
}

// pin keeps a slice's bytes in place while C reads them.
func pin(pinner *runtime.Pinner, data []byte) (*C.char, C.Py_ssize_t) {
	if len(data) == 0 {
		return nil, 0
	}
	pinner.Pin(&data[0])
	return (*C.char)(unsafe.Pointer(&data[0])), C.Py_ssize_t(len(data))
}

func (f *function) Release() { C.sca_host_release(&f.reading) }

// hook is the C hook itself: it lives on the Python heap, where a forked child and the
// observer find it too.
type hook C.struct_sca_hook

func (h *hook) c() *C.struct_sca_hook { return (*C.struct_sca_hook)(h) }

func (h *hook) Same(other patch.Hook) bool {
	o, ok := other.(*hook)
	return ok && o == h
}

func (h *hook) Hits() uint64 { return uint64(C.sca_host_hits(h.c())) }

func (h *hook) Revert() error {
	var reason [C.SCA_REASON_SIZE]C.char
	if status := C.sca_host_revert(h.c(), &reason[0]); status != C.SCA_OK {
		return statusError(status, &reason[0])
	}
	return nil
}

func (h *hook) Release() { C.sca_host_drop(h.c()) }

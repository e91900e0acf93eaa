package main

/*
#include <stdlib.h>
#include "host.h"

static void host_loaded(struct sca_host *h) { h->loaded(); }
static void host_ready(struct sca_host *h) { h->ready(); }
static void host_refuse(struct sca_host *h, const char *reason) { h->refuse(reason); }
static void host_read(struct sca_host *h, struct sca_reading *r, size_t n) { h->read(r, n); }
static void host_release(struct sca_host *h, struct sca_reading *r, size_t n) { h->release(r, n); }
static void host_swap(struct sca_host *h, struct sca_swap *s, size_t n) { h->swap(s, n); }
static void host_revert(struct sca_host *h, struct sca_revert *r, size_t n) { h->revert(r, n); }
static void host_drop(struct sca_host *h, struct sca_hook **hooks, size_t n) { h->drop(hooks, n); }
static ptrdiff_t host_living(struct sca_host *h, struct sca_living **l) { return h->living(l); }
static enum sca_hook_state host_state(struct sca_host *h, struct sca_hook *hook) { return h->state(hook); }
static enum sca_mode host_mode(struct sca_host *h, struct sca_hook *hook) { return h->mode(hook); }
static void host_watch(struct sca_host *h, const char **m, size_t n) { h->watch(m, n); }
static void host_next(struct sca_host *h, struct sca_event *e) { h->next(e); }
static void host_answer(struct sca_host *h, struct sca_event *e, const char *json, size_t n) { h->answer(e, json, n); }
static void host_done(struct sca_host *h, struct sca_event *e) { h->done(e); }
static void host_log(struct sca_host *h, const char *line, size_t n) { h->log(line, n); }
*/
import "C"

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"sca-probe/pkg/patch"
	"sca-probe/pkg/patch/bytecode"
	"sca-probe/pkg/rc"
)

// interpreter is the CPython that the engine is in, as a patch.Host.
type interpreter struct {
	host *C.struct_sca_host
	// pushed is the source of Remote Configuration, where that is Python.
	pushed *pushedSource
}

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

var modes = map[rc.Mode]C.enum_sca_mode{rc.Count: C.SCA_COUNT, rc.FirstHit: C.SCA_FIRST_HIT}

// array allocates n zeroed elements that C may keep pointers in. Free ends it.
func array[T any](n int) []T {
	var element T
	memory := C.calloc(C.size_t(n), C.size_t(unsafe.Sizeof(element)))
	if memory == nil {
		panic("out of memory") // which is caught; C.CString and C.CBytes would end the process
	}
	return unsafe.Slice((*T)(memory), n)
}

func cString(s string) *C.char {
	text := array[byte](len(s) + 1)
	copy(text, s)
	return (*C.char)(unsafe.Pointer(unsafe.SliceData(text)))
}

func cBytes(data []byte) (*C.char, C.size_t) {
	memory := array[byte](max(len(data), 1))
	copy(memory, data)
	return (*C.char)(unsafe.Pointer(unsafe.SliceData(memory))), C.size_t(len(data))
}

func free[T any](elements []T) { C.free(unsafe.Pointer(unsafe.SliceData(elements))) }

// Read implements patch.Host.
func (in interpreter) Read(targets []rc.Target) []patch.Reading {
	return in.read(targets, C.SCA_COUNT)
}

func (in interpreter) read(targets []rc.Target, mode C.enum_sca_mode) []patch.Reading {
	readings := array[C.struct_sca_reading](len(targets))
	defer free(readings)
	for i, target := range targets {
		readings[i].module, readings[i].qualname = cString(target.Module), cString(target.QualName)
		readings[i].mode = mode
	}
	C.host_read(in.host, &readings[0], C.size_t(len(readings)))
	results := make([]patch.Reading, len(readings))
	for i := range readings {
		r := &readings[i]
		C.free(unsafe.Pointer(r.module))
		C.free(unsafe.Pointer(r.qualname))
		r.module, r.qualname = nil, nil
		switch r.status {
		case C.SCA_OK:
			results[i].Function = &function{in, *r}
		case C.SCA_PATCHED:
			results[i].Hook = patch.Hook(r.hook)
		default:
			results[i].Err = statusError(r.status, &r.reason[0])
		}
	}
	return results
}

// function is a function that was read, with the references that the reading holds.
type function struct {
	in      interpreter
	reading C.struct_sca_reading
}

// Code implements patch.Function.
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

// Release implements patch.Host.
func (in interpreter) Release(functions []patch.Function) {
	readings := array[C.struct_sca_reading](len(functions))
	defer free(readings)
	for i, f := range functions {
		readings[i] = f.(*function).reading
	}
	C.host_release(in.host, &readings[0], C.size_t(len(readings)))
}

// Swap implements patch.Host.
func (in interpreter) Swap(swaps []patch.Swap) []patch.Reading {
	return in.swap(swaps, func(s patch.Swap) C.enum_sca_mode { return modes[s.Mode] })
}

func (in interpreter) swap(changes []patch.Swap, mode func(patch.Swap) C.enum_sca_mode) []patch.Reading {
	readings, swaps := array[C.struct_sca_reading](len(changes)), array[C.struct_sca_swap](len(changes))
	defer free(readings)
	defer free(swaps)
	for i, change := range changes {
		readings[i] = change.Function.(*function).reading
		s := &swaps[i]
		s.reading = &readings[i]
		s.target, s.mode = cString(change.Target.String()), mode(change)
		s.bytecode, s.bytecode_size = cBytes(change.Code.Bytecode)
		s.linetable, s.linetable_size = cBytes(change.Code.LineTable)
		s.exceptiontable, s.exceptiontable_size = cBytes(change.Code.ExceptionTable)
		s.stacksize = C.int(change.Code.StackSize)
		readings[i].module, readings[i].qualname = s.target, s.target
	}
	C.host_swap(in.host, &swaps[0], C.size_t(len(swaps)))
	results := make([]patch.Reading, len(swaps))
	for i := range swaps {
		s := &swaps[i]
		if s.status == C.SCA_OK {
			results[i].Hook = patch.Hook(s.hook)
		} else {
			results[i].Err = statusError(s.status, &readings[i].reason[0])
		}
		for _, data := range []*C.char{s.target, s.bytecode, s.linetable, s.exceptiontable} {
			C.free(unsafe.Pointer(data))
		}
	}
	return results
}

// Revert implements patch.Host.
func (in interpreter) Revert(hooks []patch.Hook) []error {
	reverts := array[C.struct_sca_revert](len(hooks))
	defer free(reverts)
	for i, h := range hooks {
		reverts[i].hook = hook(h)
	}
	C.host_revert(in.host, &reverts[0], C.size_t(len(reverts)))
	errs := make([]error, len(reverts))
	for i := range reverts {
		if r := &reverts[i]; r.status != C.SCA_OK {
			errs[i] = statusError(r.status, &r.reason[0])
		}
	}
	return errs
}

// Drop implements patch.Host.
func (in interpreter) Drop(hooks []patch.Hook) {
	pointers := array[*C.struct_sca_hook](len(hooks))
	defer free(pointers)
	for i, h := range hooks {
		pointers[i] = hook(h)
	}
	C.host_drop(in.host, &pointers[0], C.size_t(len(pointers)))
}

// Living implements patch.Host.
func (in interpreter) Living() ([]patch.Living, error) {
	var list *C.struct_sca_living
	n := C.host_living(in.host, &list)
	if n < 0 {
		return nil, patch.ErrStopped
	}
	defer C.free(unsafe.Pointer(list))
	var living []patch.Living
	for _, l := range unsafe.Slice(list, int(n)) {
		target, err := rc.ParseTarget(C.GoString(l.target))
		if err != nil {
			continue // cannot be: it was parsed before it became a hook's
		}
		living = append(living, patch.Living{Hook: patch.Hook(l.hook), Target: target})
	}
	return living, nil
}

// Next implements patch.Host.
func (in interpreter) Next() patch.Event {
	event := new(C.struct_sca_event)
	for C.host_next(in.host, event); event.kind == C.SCA_EVENT_PUSHED; C.host_next(in.host, event) {
		if in.pushed != nil {
			in.pushed.sync() // the desired set comes by its channel
		}
	}
	done := func() { C.host_done(in.host, event) }
	switch event.kind {
	case C.SCA_EVENT_IMPORTED:
		return patch.Event{Kind: patch.Imported, Module: C.GoString(event.module), Done: done}
	case C.SCA_EVENT_ASKED:
		answer := func(json []byte) {
			C.host_answer(in.host, event, (*C.char)(unsafe.Pointer(unsafe.SliceData(json))), C.size_t(len(json)))
		}
		return patch.Event{Kind: patch.Asked, Answer: answer, Done: done}
	case C.SCA_EVENT_HIT:
		return patch.Event{Kind: patch.Hit, Done: done}
	default:
		return patch.Event{Kind: patch.Stopped, Done: done}
	}
}

// importTargets are called when the import of a module ends (Lib/importlib/_bootstrap.py:
// _find_and_load and _exec). From 3.15 on a module in a package is locked with its parents.
func importTargets(version bytecode.Version) []rc.Target {
	targets := []rc.Target{{Module: "_frozen_importlib", QualName: "_ModuleLockManager.__exit__"}}
	if version.Minor >= 15 {
		targets = append(targets, rc.Target{Module: "_frozen_importlib", QualName: "_HierarchicalLockManager.__exit__"})
	}
	return targets
}

// Imports implements patch.Host.
func (in interpreter) Imports(version bytecode.Version) ([]patch.Hook, error) {
	var hooks []patch.Hook
	for _, target := range importTargets(version) {
		hook, err := in.imports(version, target)
		if err != nil {
			if len(hooks) > 0 {
				in.Revert(hooks)
				in.Drop(hooks)
			}
			return nil, err
		}
		hooks = append(hooks, hook)
	}
	return hooks, nil
}

func (in interpreter) imports(version bytecode.Version, target rc.Target) (patch.Hook, error) {
	reading := in.read([]rc.Target{target}, C.SCA_IMPORTS)[0]
	if reading.Err != nil || reading.Hook != nil {
		return reading.Hook, reading.Err
	}
	code, err := bytecode.InsertPrologue(version, reading.Function.Code())
	if err != nil {
		in.Release([]patch.Function{reading.Function})
		return nil, err
	}
	swap := patch.Swap{Target: target, Function: reading.Function, Code: code}
	result := in.swap([]patch.Swap{swap}, func(patch.Swap) C.enum_sca_mode { return C.SCA_IMPORTS })[0]
	return result.Hook, result.Err
}

// Watch implements patch.Host.
func (in interpreter) Watch(modules []string) {
	names := array[*C.char](max(len(modules), 1))
	defer free(names)
	for i, module := range modules {
		names[i] = cString(module)
	}
	C.host_watch(in.host, &names[0], C.size_t(len(modules)))
	for _, name := range names {
		C.free(unsafe.Pointer(name))
	}
}

// Write implements [io.Writer]: a line to the program's standard error. Go's own descriptors are others, and
// its os.Stderr would end the program by SIGPIPE where nobody reads any more.
func (in interpreter) Write(line []byte) (int, error) {
	if len(line) > 0 {
		C.host_log(in.host, (*C.char)(unsafe.Pointer(&line[0])), C.size_t(len(line)))
	}
	return len(line), nil
}

func (in interpreter) loaded() { C.host_loaded(in.host) }

// Ready implements patch.Host.
func (in interpreter) Ready() { C.host_ready(in.host) }

func (in interpreter) refuse(err error) {
	reason := append([]byte(err.Error()), 0)
	C.host_refuse(in.host, (*C.char)(unsafe.Pointer(unsafe.SliceData(reason))))
}

var numbers = map[patch.Number]int{
	patch.Targets:           C.SCA_N_TARGETS,
	patch.PatchedTargets:    C.SCA_N_PATCHED,
	patch.PendingTargets:    C.SCA_N_PENDING,
	patch.UnresolvedTargets: C.SCA_N_UNRESOLVED,
	patch.Updates:           C.SCA_N_UPDATES,
	patch.UpdatesRefused:    C.SCA_N_UPDATES_REFUSED,
	patch.Failures:          C.SCA_N_FAILURES,
}

func (in interpreter) number(i int) *uint64 {
	return (*uint64)(unsafe.Add(unsafe.Pointer(in.host.numbers), 8*i))
}

// Set implements patch.Host.
func (in interpreter) Set(number patch.Number, value int) {
	atomic.StoreUint64(in.number(numbers[number]), uint64(value))
}

// Add implements patch.Host.
func (in interpreter) Add(number patch.Number, n int) {
	atomic.AddUint64(in.number(numbers[number]), uint64(n))
}

// hook returns the C hook itself: it lives on the Python heap, where a forked child and the observer
// find it too.
func hook(h patch.Hook) *C.struct_sca_hook { return (*C.struct_sca_hook)(h) }

// Mode implements patch.Host.
func (in interpreter) Mode(h patch.Hook) rc.Mode {
	if C.host_mode(in.host, hook(h)) == C.SCA_FIRST_HIT {
		return rc.FirstHit
	}
	return rc.Count
}

// State implements patch.Host.
func (in interpreter) State(h patch.Hook) patch.HookState {
	switch C.host_state(in.host, hook(h)) {
	case C.SCA_IN_PLACE:
		return patch.InPlace
	case C.SCA_HIT:
		return patch.HitOnce
	default:
		return patch.TakenOut
	}
}

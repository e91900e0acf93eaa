package main

/*
#include <stdlib.h>
#include "host.h"

static ptrdiff_t host_configurations(struct sca_host *h, struct sca_configuration **l) { return h->configurations(l); }
static void host_applied(struct sca_host *h, struct sca_applied *a, size_t n) { h->applied(a, n); }
*/
import "C"

import (
	"context"
	"sync"
	"time"
	"unsafe"

	"sca-probe/pkg/patch"
	"sca-probe/pkg/rc"
)

// retry is how long after memory ran out it is tried again.
const retry = time.Second

// A pushedSource yields the configurations that Python handed to the extension, which keeps them:
// each [pushedSource.sync] compares all of them with what was known. A reconciler that starts in a
// forked child therefore needs nothing from the one before it.
type pushedSource struct {
	in   interpreter
	push *rc.Push

	mu       sync.Mutex
	editions map[string]uint64 // of each configuration that is in push, by its path
}

func newPushedSource(in interpreter) *pushedSource {
	return &pushedSource{in: in, push: rc.NewPush(), editions: map[string]uint64{}}
}

// Watch implements [rc.Source].
func (s *pushedSource) Watch(ctx context.Context) <-chan rc.Update {
	s.sync()
	updates := make(chan rc.Update)
	go func() {
		defer close(updates)
		for update := range s.push.Watch(ctx) {
			select {
			case updates <- update.OnAck(s.report):
			case <-ctx.Done():
				return
			}
		}
	}()
	return updates
}

// sync takes the configurations as the extension has them now.
func (s *pushedSource) sync() { s.survive(s.take) }

// report tells Python what became of each configuration.
func (s *pushedSource) report() { s.survive(s.tell) }

// survive does work, again a little later where memory runs out.
func (s *pushedSource) survive(work func()) {
	defer func() {
		if failure := recover(); failure != nil {
			s.in.Add(patch.Failures, 1)
			time.AfterFunc(retry, func() { s.survive(work) })
		}
	}()
	work()
}

func (s *pushedSource) take() {
	var list *C.struct_sca_configuration
	n := C.host_configurations(s.in.host, &list)
	if n == -2 {
		panic("out of memory")
	}
	if n < 0 {
		return
	}
	defer C.free(unsafe.Pointer(list))
	s.update(unsafe.Slice(list, int(n)))
	s.report() // what changes nothing leads to no update
}

func (s *pushedSource) update(list []C.struct_sca_configuration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var changes []rc.Change
	gone := s.editions
	s.editions = make(map[string]uint64, len(list))
	for _, c := range list {
		path, edition := C.GoString(c.path), uint64(c.edition)
		if gone[path] != edition {
			payload := unsafe.Slice((*byte)(unsafe.Pointer(c.payload)), int(c.size))
			changes = append(changes, rc.Change{Path: path, Payload: append([]byte{}, payload...)})
		}
		s.editions[path] = edition
		delete(gone, path)
	}
	for path := range gone {
		changes = append(changes, rc.Change{Path: path})
	}
	_ = s.push.Push(changes...) // the extension keeps to the only limit that it has
}

func (s *pushedSource) tell() {
	s.mu.Lock()
	defer s.mu.Unlock()
	states := s.push.States()
	applied := array[C.struct_sca_applied](max(len(states), 1))
	defer free(applied)
	n := 0
	for path, state := range states {
		a := &applied[n]
		n++
		a.path, a.edition = cString(path), C.uint64_t(s.editions[path])
		reason := ""
		switch {
		case state.Err != nil:
			a.state, reason = C.SCA_REFUSED, state.Err.Error()
		case state.Applied:
			a.state = C.SCA_ACKNOWLEDGED
		default:
			a.state = C.SCA_UNACKNOWLEDGED
		}
		a.error = cString(reason)
	}
	C.host_applied(s.in.host, &applied[0], C.size_t(n))
	for _, a := range applied[:n] {
		C.free(unsafe.Pointer(a.path))
		C.free(unsafe.Pointer(a.error))
	}
}

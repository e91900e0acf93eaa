package pyframes

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"
)

// A FunctionState is a function that a process holds, and whether it ever ran.
type FunctionState struct {
	Code
	// Function is the address of a PyFunctionObject that runs the code; 0 when the function around
	// it has not made one yet, or none was found.
	Function uint64
	Module   string // __module__ of Function, or of the function around it; "" when it has none
	Hook     *Hook  // what the engine put in; Code is then the original
	Evidence Evidence
	Unclear  error // why Evidence says nothing, as ErrAmbiguousEvidence; else nil
}

// A FunctionScan says what to look for among the functions of a process, and afterwards what was
// looked at.
type FunctionScan struct {
	// Match chooses by module and code, before evidence is read. nil chooses all.
	Match func(module string, c Code) bool
	// Progress, where not nil, is told now and then how much is done, of 1.
	Progress func(done float64)

	Bytes    uint64 // memory looked through
	Rejected int    // what looked like a function and is none, or was gone before it was read
}

// Functions finds every function that the process holds: those of the objects of type function in
// its memory, and those in the constants of their code, which are made only when that runs. Each
// code object comes once. What was found is believed when the object is linked into the garbage
// collector's lists, its parts are what they must be, and it is still there after they were
// read: a freed object or a copy of its bytes is not.
//
// Memory stays bounded, at 8 bytes per function and a cache. The process keeps running, so a
// function that is made meanwhile may be missed. The sequence ends after its first error,
// which is that of ctx or one that Resolve has.
func (p *Process) Functions(ctx context.Context, scan *FunctionScan) iter.Seq2[FunctionState, error] {
	return func(yield func(FunctionState, error) bool) {
		if scan == nil {
			scan = &FunctionScan{}
		}
		s := &functionScan{FunctionScan: scan, process: p, runBy: make(map[uint64]uint64), started: make(map[uint64]bool), seen: make(map[codeKey]bool)}
		_, s.engine = p.EnginePath()
		err := s.collect(ctx)
		if err == nil {
			err = s.judge(ctx, func(f FunctionState) bool { return yield(f, nil) })
		}
		if gone := p.Gone(); gone != nil {
			err = gone
		}
		if err != nil && !errors.Is(err, errStop) {
			yield(FunctionState{}, fmt.Errorf("functions of process %d: %w", p.pid, err))
		}
	}
}

// errStop says that whoever ranges over the functions wants no more.
var errStop = errors.New("stop")

type functionScan struct {
	*FunctionScan
	process   *Process
	engine    bool // an engine is there, so code objects may be patched
	functions []uint64
	runBy     map[uint64]uint64 // of code objects, a function that seems to run it
	started   map[uint64]bool   // code objects that a living frame has run, up to 3.10
	seen      map[codeKey]bool
	spent     int // of scanBudget
}

// scanBudget is what reading all functions of a process may cost, in the unit of readBudget, of which one
// takes some 15 KiB: enough for a million. Functions that are forged to cost as much as one answer may
// run out of it within half a minute. A variable, so that a test need not take that long.
var scanBudget = 16 << 30

// A codeKey tells a code object from the one that takes its place after a free.
type codeKey struct {
	addr, name uint64
	line       int
}

const (
	scanChunk = 256 << 10
	// A process has a few thousand functions, a very large one some hundred thousand.
	maxCandidates = 1 << 22
	// The functions that are read with one cache, and looked at again afterwards.
	functionBatch = 256
	// The shares of the two phases in what Progress is told.
	collectShare = 0.3
)

// collect looks through the memory for objects of type function, and up to 3.10 frame.
func (s *functionScan) collect(ctx context.Context) error {
	mappings, err := writableMappings(s.process.pid)
	if err != nil {
		return err
	}
	var total, done uint64
	for _, m := range mappings {
		total += m.end - m.start
	}
	buf := make([]byte, scanChunk)
	for _, m := range mappings {
		err := populated(s.process.pid, m, func(part span) error {
			for at := part.start; at < part.end; at += scanChunk {
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := s.look(buf[:min(scanChunk, part.end-at)], at); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		done += m.end - m.start
		s.progress(collectShare * float64(done) / float64(total))
	}
	return nil
}

func (s *functionScan) progress(done float64) {
	if s.Progress != nil {
		s.Progress(done)
	}
}

// look reads one piece of memory and notes the objects in it.
func (s *functionScan) look(buf []byte, at uint64) error {
	mem := s.process.image.mem
	if err := mem.readAt(buf, at); err != nil {
		if errors.Is(err, ErrNoProcess) || errors.Is(err, ErrPermission) {
			return err
		}
		// Some of it was unmapped meanwhile.
		for len(buf) > pageSize {
			if err := s.look(buf[:pageSize], at); err != nil {
				return err
			}
			buf, at = buf[pageSize:], at+pageSize
		}
		if mem.readAt(buf, at) != nil {
			return nil
		}
	}
	s.Bytes += uint64(len(buf))
	im := &s.process.image
	function, frame := im.addr["PyFunction_Type"], im.addr["PyFrame_Type"]
	if im.layout.frameCode == 0 {
		frame = function
	}
	for i := objectType; i+8 <= len(buf); i += 8 {
		word := binary.LittleEndian.Uint64(buf[i:])
		if word != function && word != frame {
			continue
		}
		if !im.plausibleCount(binary.LittleEndian.Uint64(buf[i-objectType:])) {
			continue
		}
		object := at + uint64(i) - objectType
		if word == function {
			if len(s.functions) == maxCandidates {
				return fmt.Errorf("%w: it holds more than %d functions", ErrCorrupt, maxCandidates)
			}
			s.functions = append(s.functions, object)
			code, err := uint64(0), error(nil)
			if end := i - objectType + int(im.layout.functionCode) + 8; end <= len(buf) {
				code = binary.LittleEndian.Uint64(buf[end-8:])
			} else if code, err = im.word(object, im.layout.functionCode); err != nil {
				continue
			}
			s.runBy[code] = object
			continue
		}
		s.noteFrame(object)
	}
	return nil
}

// noteFrame notes the code object that a frame has begun to run. Frames need not be in the garbage
// collector's lists; those that wait to be used again have no references.
func (s *functionScan) noteFrame(frame uint64) {
	im := s.process.image
	code, err := im.word(frame, im.layout.frameCode)
	if err != nil {
		return
	}
	if is, err := im.is(code, "PyCode_Type"); err != nil || !is {
		return
	}
	last, err := im.uint32(frame, im.layout.frameLastInstr)
	if err == nil && int32(last) >= 0 && len(s.started) < maxCandidates {
		s.started[code] = true
	}
}

// plausibleCount reports whether ob_refcnt is that of a living object. In freed memory it is 0 or
// part of an address.
func (im *image) plausibleCount(count uint64) bool {
	if im.layout.sharedCount {
		// From 3.14 on: 32 bits, 16 of overflow, 16 of flags (Include/object.h).
		return uint32(count) != 0 && uint16(count>>32) == 0
	}
	return count != 0 && count < 1<<33
}

// collected reports whether the garbage collector's list leads to an object and back. That is not
// so while a collection is under way, from 3.8 on.
func (im *image) collected(object uint64) (bool, error) {
	const flags = 7 // low bits of both links, Include/internal/pycore_gc.h
	head := object - im.layout.gcHead
	for _, link := range []struct{ to, back uint64 }{{0, 8}, {8, 0}} {
		neighbour, err := im.word(head, link.to)
		if err != nil {
			return false, err
		}
		if neighbour &^= flags; neighbour < pageSize {
			continue
		}
		back, err := im.word(neighbour, link.back)
		if err == nil && back&^flags == head {
			return true, nil
		}
	}
	return false, nil
}

// judge reads the functions that collect found, in batches, and again those that did not look right:
// a collection of garbage may have been under way.
func (s *functionScan) judge(ctx context.Context, yield func(FunctionState) bool) error {
	slices.Sort(s.functions)
	unclear, err := s.judgeAll(ctx, s.functions, yield, func(done float64) {
		s.progress(collectShare + (1-collectShare)*done)
	})
	// A collection that takes long makes most of them unclear; what is never clear is few.
	settled := 1
	for pause := 10 * time.Millisecond; err == nil && len(unclear) > 0 && pause < time.Second; pause *= 2 {
		if settled == 0 && len(unclear) < len(s.functions)/10 {
			break
		}
		time.Sleep(pause)
		before := len(unclear)
		unclear, err = s.judgeAll(ctx, unclear, yield, func(float64) {})
		settled = before - len(unclear)
	}
	s.Rejected = len(unclear)
	return err
}

// judgeAll returns the functions that did not look right.
func (s *functionScan) judgeAll(ctx context.Context, functions []uint64, yield func(FunctionState) bool, progress func(float64)) (unclear []uint64, err error) {
	for i := 0; i < len(functions); i += functionBatch {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		batch := functions[i:min(i+functionBatch, len(functions))]
		states, failed, err := s.read(batch)
		if err != nil {
			return nil, err
		}
		unclear = append(unclear, failed...)
		for _, state := range states {
			if !yield(state) {
				return nil, errStop
			}
		}
		progress(float64(i+len(batch)) / float64(len(functions)))
	}
	return unclear, nil
}

// A heldFunction is a function object and what it runs, as they were read.
type heldFunction struct {
	object uint64
	code   uint64
	states []readState
}

// A readState is a state with the code object in place, which is another where the engine put one.
type readState struct {
	FunctionState
	inPlace Code
}

// read reads functions, and returns the states of those that are still there afterwards.
func (s *functionScan) read(batch []uint64) (states []FunctionState, failed []uint64, err error) {
	view := s.process.image
	cache := newPageCache(view.mem)
	view.mem = cache
	var held []heldFunction
	for _, object := range batch {
		if cache.spent > readBudget/2 {
			cache = newPageCache(cache.under)
			view.mem = cache
		}
		before := cache.spent
		h, err := s.readFunction(&view, object)
		if s.spent += cache.spent - before; s.spent > scanBudget {
			return nil, nil, fmt.Errorf("%w: its %d functions take more to read than those of any program", ErrCorrupt, len(s.functions))
		}
		switch {
		case errors.Is(err, ErrNoProcess), errors.Is(err, ErrPermission):
			return nil, nil, err
		case err != nil:
			failed = append(failed, object)
		default:
			held = append(held, h)
		}
	}
	for _, h := range held {
		// Whatever was read of a function that is gone by now means nothing.
		if !s.stillHeld(h) {
			failed = append(failed, h.object)
			continue
		}
		for _, state := range h.states {
			key := codeKey{state.Addr, state.NameAddr, state.FirstLine}
			if s.seen[key] {
				continue
			}
			if state.Evidence.Executed && !s.confirm(state) {
				failed = append(failed, h.object)
				continue
			}
			s.seen[key] = true
			states = append(states, state.FunctionState)
		}
	}
	return states, failed, nil
}

// stillHeld reports whether the function is there and runs the same code, past any cache.
func (s *functionScan) stillHeld(h heldFunction) bool {
	im := s.process.image
	object := make([]byte, im.layout.functionCode+8)
	if im.mem.readAt(object, h.object) != nil {
		return false
	}
	word := func(offset uint64) uint64 { return binary.LittleEndian.Uint64(object[offset:]) }
	return word(objectType) == im.addr["PyFunction_Type"] && im.plausibleCount(word(0)) && word(im.layout.functionCode) == h.code
}

// confirm reads the evidence once more, past the cache, and reports whether it is the same and the
// code object is there before and after. What the cache has of one object may be of different times,
// and memory is used again.
func (s *functionScan) confirm(state readState) bool {
	im := s.process.image
	now := FunctionState{Code: state.Code}
	if !im.isStill(state.Code) || !im.isStill(state.inPlace) {
		return false
	}
	return s.addEvidence(&im, &now, state.inPlace) == nil && now.Evidence.Executed && im.isStill(state.Code) && im.isStill(state.inPlace)
}

var errNotHeld = fmt.Errorf("%w: no living object", ErrCorrupt)

func (s *functionScan) readFunction(im *image, object uint64) (heldFunction, error) {
	h := heldFunction{object: object}
	if err := im.isFunctionHeld(object); err != nil {
		return h, err
	}
	code, err := im.functionCode(object)
	if err != nil {
		return h, err
	}
	h.code = code.Addr
	h.states, err = s.readCode(im, nil, code, im.moduleOf(object), object, 0)
	return h, err
}

func (im *image) isFunctionHeld(object uint64) error {
	if err := im.mustBe(object, "PyFunction_Type"); err != nil {
		return err
	}
	if linked, err := im.collected(object); err != nil || !linked {
		return errors.Join(errNotHeld, err)
	}
	return nil
}

// moduleOf returns __module__ of a function, "" when that is no str.
func (im *image) moduleOf(function uint64) string {
	module, err := im.textAt(function, im.layout.functionModule)
	if err != nil {
		return ""
	}
	return module
}

// maxNesting bounds how deep functions and classes are within each other: the compiler refuses
// more than 100 nested blocks.
const maxNesting = 128

// readCode adds the states of a code object and of those in its constants.
func (s *functionScan) readCode(im *image, states []readState, code Code, module string, function uint64, depth int) ([]readState, error) {
	if depth > maxNesting {
		return nil, fmt.Errorf("%w: code objects within each other %d deep", ErrCorrupt, depth)
	}
	count, err := im.word(code.Addr, 0)
	if err != nil || !im.plausibleCount(count) {
		return nil, errors.Join(errNotHeld, err)
	}
	outer := code
	var hook *Hook
	if s.engine {
		if hook, err = im.hookOf(code.Addr); err != nil {
			return nil, err
		}
		if hook != nil {
			if code, err = im.code(hook.Original); err != nil {
				return nil, err
			}
			code.QualName = outer.QualName
		}
	}
	if code.IsFunction() && !s.seen[codeKey{code.Addr, code.NameAddr, code.FirstLine}] && (s.Match == nil || s.Match(module, code)) {
		state := FunctionState{Code: code, Function: function, Module: module}
		if hook != nil && hook.isTarget() {
			state.Hook = hook
		}
		if err := s.addEvidence(im, &state, outer); err != nil {
			return nil, err
		}
		states = append(states, readState{state, outer})
	}
	for inner, err := range im.codesWithin(outer) {
		if err != nil {
			return nil, err
		}
		if im.layout.codeQualName == 0 {
			inner.QualName = qualified(code, inner.Name)
		}
		if s.runBySomething(im, inner.Addr) {
			continue // it comes with its function
		}
		if states, err = s.readCode(im, states, inner, module, 0, depth+1); err != nil {
			return nil, err
		}
	}
	return states, nil
}

// runBySomething reports whether a living function runs the code object.
func (s *functionScan) runBySomething(im *image, code uint64) bool {
	function := s.runBy[code]
	if function == 0 || im.isFunctionHeld(function) != nil {
		return false
	}
	runs, err := im.word(function, im.layout.functionCode)
	return err == nil && runs == code
}

// addEvidence reads what running left behind, in the code object in place and in the original.
func (s *functionScan) addEvidence(im *image, state *FunctionState, inPlace Code) error {
	state.Evidence, state.Unclear = im.evidence(state.Code)
	if inPlace.Addr != state.Addr && !state.Evidence.Executed {
		if e, err := im.evidence(inPlace); err == nil && e.Executed {
			state.Evidence, state.Unclear = e, nil
		}
	}
	if s.started[state.Addr] || s.started[inPlace.Addr] {
		if !state.Evidence.Executed {
			state.Evidence = Evidence{Executed: true, Detail: "a frame of it is running"}
		}
		state.Unclear = nil
	}
	if im.layout.frameCode != 0 {
		// Calls that go on have been seen by their frames.
		state.Evidence.Misses, state.Evidence.Weak = "", false
	}
	if state.Unclear != nil && !errors.Is(state.Unclear, ErrAmbiguousEvidence) {
		return state.Unclear
	}
	return nil
}

// writableMappings returns the private mappings that a process may write, where its objects are.
func writableMappings(pid int) ([]span, error) {
	maps, err := readAllMaps(pid)
	if err != nil {
		return nil, err
	}
	var found []span
	for _, m := range maps {
		if m.Perms.Read && m.Perms.Write && m.Perms.Private && m.Pathname != "[vvar]" {
			found = append(found, span{uint64(m.StartAddr), uint64(m.EndAddr)})
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("read mappings: %w", ErrNoProcess)
	}
	return found, nil
}

package pyframes

import (
	"encoding/binary"
	"fmt"
)

// A Hook is what the engine puts into a patched code object as its last constant: struct
// sca_hook (cmd/sca-engine/extension/hook.h).
type Hook struct {
	Addr     uint64 // of the struct
	Target   string // "module:qualname"
	Hits     uint64 // calls of the target since it was patched
	Original uint64 // address of the code object that the patched one stands for
	Patched  uint64 // address of the patched code object
	Mode     HookMode
	State    HookState
	Callers  []Caller
}

// A HookMode is what a hook is for: enum sca_mode in cmd/sca-engine/host.h.
type HookMode uint32

// The modes. A function whose hook is a carrier or the engine's own is not patched.
const (
	CountMode    HookMode = iota // counts every call
	FirstHitMode                 // removes itself on the first call
	carrierMode                  // marks a function whose nested code constants were replaced
	importsMode                  // the engine's own, in the import system
)

// A HookState is what became of a hook: enum sca_hook_state in cmd/sca-engine/host.h.
type HookState uint32

// The states.
const (
	InPlace HookState = iota
	Reverted
	Hit // a first-hit hook that removed itself
)

// isTarget reports whether the hook is one of a target.
func (h *Hook) isTarget() bool { return h.Mode == CountMode || h.Mode == FirstHitMode }

// A Caller is one place that called the target, recorded on its first hits.
type Caller struct {
	Path, Symbol string
	Line         int
}

const (
	hookMagic  = 0x6b6f6f4861637331
	hookABI    = 2
	hookSize   = 88
	maxCallers = 8
	callerSize = 24
)

// ReadHook reads the hook at an address, which is that of struct sca_hook.
func (p *Process) ReadHook(addr uint64) (*Hook, error) {
	var h *Hook
	err := p.answer(func(im *image) (err error) {
		if h, err = im.hook(addr); err == nil && h == nil {
			err = fmt.Errorf("%w: no hook at %#x", ErrCorrupt, addr)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

// hookOf returns the hook of a code object that the engine put in place, nil when it did not. The hook
// may be none of a target.
func (im *image) hookOf(code uint64) (*Hook, error) {
	consts, err := im.word(code, im.layout.codeConsts)
	if err != nil {
		return nil, err
	}
	n, err := im.tupleLen(consts)
	if err != nil || n == 0 {
		return nil, err
	}
	last, err := im.tupleItem(consts, n-1)
	if err != nil {
		return nil, err
	}
	h, err := im.hook(last)
	if err != nil || h == nil {
		return nil, err
	}
	if h.Patched != code {
		return nil, fmt.Errorf("%w: the hook of %s belongs to the code object at %#x and is in the one at %#x", ErrCorrupt, h.Target, h.Patched, code)
	}
	return h, nil
}

// hook reads a struct sca_hook, nil when there is something else.
func (im *image) hook(addr uint64) (*Hook, error) {
	magic, err := im.word(addr, 16)
	if err != nil || magic != hookMagic {
		return nil, err
	}
	var raw [hookSize]byte
	if err := im.mem.readAt(raw[:], addr); err != nil {
		return nil, err
	}
	word := func(offset int) uint64 { return binary.LittleEndian.Uint64(raw[offset:]) }
	if abi := binary.LittleEndian.Uint32(raw[24:]); abi != hookABI {
		return nil, fmt.Errorf("hook at %#x has ABI %d, this observer knows %d: update the older of the two", addr, abi, hookABI)
	}
	h := &Hook{Addr: addr, Original: word(48), Patched: word(64)}
	h.Mode, h.State = HookMode(binary.LittleEndian.Uint32(raw[80:])), HookState(binary.LittleEndian.Uint32(raw[84:]))
	if h.Mode > importsMode || h.State > Hit {
		return nil, fmt.Errorf("%w: hook at %#x has mode %d and state %d", ErrCorrupt, addr, h.Mode, h.State)
	}
	if h.Hits, err = im.word(word(32), 0); err != nil {
		return nil, fmt.Errorf("hits of the hook at %#x: %w", addr, err)
	}
	if h.Target, err = readCString(im.mem, word(40)); err != nil {
		return nil, fmt.Errorf("target of the hook at %#x: %w", addr, err)
	}
	if err := im.mustBe(h.Original, "PyCode_Type"); err != nil {
		return nil, fmt.Errorf("original code of %s: %w", h.Target, err)
	}
	if err := im.mustBe(h.Patched, "PyCode_Type"); err != nil {
		return nil, fmt.Errorf("patched code of %s: %w", h.Target, err)
	}
	callers, count := word(72), binary.LittleEndian.Uint32(raw[28:])
	if count > maxCallers || count > 0 && callers == 0 {
		return nil, fmt.Errorf("%w: the hook of %s has %d callers at %#x", ErrCorrupt, h.Target, count, callers)
	}
	for i := range uint64(count) {
		var c Caller
		at := callers + i*callerSize
		for offset, text := range map[uint64]*string{0: &c.Path, 8: &c.Symbol} {
			where, err := im.word(at, offset)
			if err != nil {
				return nil, err
			}
			if *text, err = readCString(im.mem, where); err != nil {
				return nil, fmt.Errorf("caller of %s: %w", h.Target, err)
			}
		}
		line, err := im.uint32(at, 16)
		if err != nil {
			return nil, err
		}
		c.Line = int(line)
		h.Callers = append(h.Callers, c)
	}
	return h, nil
}

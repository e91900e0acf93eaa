package pyframes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"sca-probe/pkg/rc"
)

// bytesMemory is an address space with bytes at one place and nothing elsewhere.
type bytesMemory struct {
	base uint64
	data []byte
}

func (m bytesMemory) readAt(b []byte, addr uint64) error {
	if addr < m.base || addr-m.base > uint64(len(m.data)) || uint64(len(m.data))-(addr-m.base) < uint64(len(b)) {
		return fmt.Errorf("%w: nothing at %#x", ErrCorrupt, addr)
	}
	copy(b, m.data[addr-m.base:])
	return nil
}

// FuzzReaders reads arbitrary memory as if it were an interpreter. Whatever is there,
// the readers return, and they return an error or an answer.
func FuzzReaders(f *testing.F) {
	const base = 0x10000
	types := slices.Sorted(maps.Keys(wanted))
	seed := make([]byte, 2*pageSize)
	// Words that are addresses of types and of each other get past the first checks.
	for i := 0; i+8 <= len(seed); i += 8 {
		binary.LittleEndian.PutUint64(seed[i:], base+uint64(i%(len(types)*512)))
	}
	for minor := range 20 {
		f.Add(seed, uint16(512*(minor%16)), byte(minor))
	}
	f.Add([]byte{}, uint16(8), byte(14))
	f.Fuzz(func(t *testing.T, data []byte, at uint16, minor byte) {
		data = append(data, make([]byte, pageSize-len(data)%pageSize)...)
		known := layouts[[2]int{3, int(minor)}]
		if known == nil {
			known = layouts[[2]int{3, 6 + int(minor)%10}]
		}
		l := known.with(func(l *layout) {
			if l.codeBytes == 0 {
				l.codeAdaptive = max(l.codeAdaptive, 208) // where it is published
			}
		})
		space := bytesMemory{base, data}
		im := &image{mem: newPageCache(space), layout: l, addr: map[string]uint64{}, listHead: base + uint64(at)}
		for i, name := range types {
			im.addr[name] = base + uint64(i)*512
		}
		object := base + uint64(at)
		if _, published := debugOffsets[int(minor)]; published && len(data) < 600 {
			if _, err := layoutOf(space, Version{3, int(minor), 0}, object); err == nil {
				t.Errorf("a layout from %d bytes", len(data))
			}
		}
		target := rc.Target{Module: "m", QualName: "C.f.<locals>.g"}
		im.check(Version{3, int(minor), 0})
		im.resolve(target)
		im.resolveIn(object, target)
		im.resolveLocal(object, "m.f", []string{"g", "<locals>", "h"}, target)
		im.unwrap(object)
		im.lookup(object, "key")
		if text, err := im.str(object); err == nil && len(text) > 3*maxText {
			t.Errorf("a str of %d bytes", len(text))
		}
		im.hook(object)
		im.hookOf(object)
		if c, err := im.code(object); err == nil {
			im.evidence(c)
			im.resume(c)
			im.codeConstants(c, "g")
		}
		im.attribute(object, "__f")
		im.ownAttribute(object, object, "f")
		s := &functionScan{FunctionScan: &FunctionScan{}, process: &Process{image: *im}, engine: true, seen: map[codeKey]bool{}}
		s.readFunction(im, object)
	})
}

func TestHookWithImplausibleContentsIsRefused(t *testing.T) {
	const base = 0x10000
	data := make([]byte, pageSize)
	space := bytesMemory{base, data}
	im := &image{mem: space, layout: layouts[[2]int{3, 11}], addr: map[string]uint64{"PyCode_Type": base + 0x800}}
	put := func(offset int, value uint64) { binary.LittleEndian.PutUint64(data[offset:], value) }
	if h, err := im.hook(base); h != nil || err != nil {
		t.Errorf("no magic: %v, %v", h, err)
	}
	put(16, hookMagic)
	put(24, hookABI-1)
	if h, err := im.hook(base); err == nil {
		t.Errorf("another ABI: %+v", h)
	}
	put(24, hookABI|1<<32) // one caller
	put(32, base+0x780)
	put(0x780, 41)
	put(40, base+0x400)
	copy(data[0x400:], "shapes:plain\x00")
	put(48, base+0x500)
	put(64, base+0x600)
	if h, err := im.hook(base); !errors.Is(err, ErrCorrupt) {
		t.Errorf("original is no code object: %+v, %v", h, err)
	}
	put(0x500+objectType, base+0x800)
	put(0x600+objectType, base+0x800)
	if h, err := im.hook(base); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a caller at NULL: %+v, %v", h, err)
	}
	put(72, base+0x700)
	put(0x700, base+0x400)
	put(0x708, base+0x407)
	put(0x710, 12)
	h, err := im.hook(base)
	if err != nil {
		t.Fatal(err)
	}
	want := Caller{"shapes:plain", "plain", 12}
	if h.Target != "shapes:plain" || h.Hits != 41 || h.Original != base+0x500 || h.Patched != base+0x600 || len(h.Callers) != 1 || h.Callers[0] != want {
		t.Errorf("hook %+v", h)
	}
	put(80, uint64(FirstHitMode)|uint64(Hit)<<32)
	if h, err := im.hook(base); err != nil || h.Mode != FirstHitMode || h.State != Hit {
		t.Errorf("a first-hit hook that was hit: %+v, %v", h, err)
	}
	put(80, 9)
	if h, err := im.hook(base); !errors.Is(err, ErrCorrupt) {
		t.Errorf("an unknown mode: %+v, %v", h, err)
	}
	put(80, 0)
	put(32, 0)
	if h, err := im.hook(base); !errors.Is(err, ErrCorrupt) {
		t.Errorf("hits at NULL: %+v, %v", h, err)
	}
	put(32, base+0x780)
	put(24, hookABI|9<<32)
	if h, err := im.hook(base); !errors.Is(err, ErrCorrupt) {
		t.Errorf("nine callers: %+v, %v", h, err)
	}
}

package pyframes

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"sca-probe/pkg/rc"
	"sca-probe/testenv"
)

// flippingMemory is a real interpreter's memory in which, of every so many reads, one
// returns a changed bit or word: what a process that means harm, or a torn read, can do.
type flippingMemory struct {
	under memory
	rnd   *rand.Rand
	every int
}

func (m flippingMemory) readAt(b []byte, addr uint64) error {
	if err := m.under.readAt(b, addr); err != nil || m.rnd.IntN(m.every) != 0 || len(b) == 0 {
		return err
	}
	at := m.rnd.IntN(len(b))
	switch m.rnd.IntN(3) {
	case 0:
		b[at] ^= 1 << m.rnd.IntN(8)
	case 1:
		b[at] = 0xff
	case 2:
		for i := at &^ 7; i < len(b) && i < at&^7+8; i++ {
			b[i] = byte(m.rnd.Uint32())
		}
	}
	return nil
}

// TestHostileMemory reads a real interpreter with changes thrown in, deep in every reader.
func TestHostileMemory(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		s := testenv.StartSubject(t, in)
		p, err := OpenProcess(s.PID())
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		targets := []rc.Target{
			{Module: "shapes", QualName: "plain"}, {Module: "shapes", QualName: "Child.method"},
			{Module: "shapes", QualName: "wrapped"}, {Module: "shapes", QualName: "Shapes.static_method"},
			{Module: "builtins", QualName: "len"},
		}
		answers, failures := 0, 0
		seed := uint64(time.Now().UnixNano())
		rnd := rand.New(rand.NewPCG(seed, 0))
		for i := range 600 {
			im := p.image
			// Below the cache pages are read, each of which many objects share; above it, words.
			flipped := flippingMemory{p.image.mem, rnd, 5 + i%60}
			im.mem = newPageCache(flipped)
			if i%2 == 1 {
				im.mem = flippingMemory{newPageCache(p.image.mem), rnd, 50 + i%1000}
			}
			began := time.Now()
			im.check(p.in.Version)
			f, err := im.resolve(targets[i%len(targets)])
			if err == nil {
				answers++
				im.evidence(f.Code)
				im.localEvents(f.Code)
				im.hookOf(f.Code.Addr)
				im.hook(f.Addr)
			} else if unresolved := (*UnresolvedError)(nil); !errors.As(err, &unresolved) {
				failures++
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("seed %d, round %d took %v", seed, i, took)
			}
		}
		// Both must have happened, else nothing deep was read or nothing was changed.
		if answers == 0 || failures == 0 {
			t.Errorf("seed %d: %d answers, %d failures", seed, answers, failures)
		}
	})
}

func TestUnsupportedBuildsAreRefused(t *testing.T) {
	testenv.EachInterpreter(t, testenv.ObserverRefuses, func(t *testing.T, python testenv.Interpreter) {
		in, err := OpenInterpreter(python.Path)
		if !errors.Is(err, ErrUnsupportedBuild) || in == nil || in.Version.Major != 3 {
			t.Errorf("%+v, %v; want ErrUnsupportedBuild", in, err)
		}
		s := testenv.StartSubject(t, python)
		if p, err := OpenProcess(s.PID()); !errors.Is(err, ErrUnsupportedBuild) {
			t.Errorf("%v, %v; want ErrUnsupportedBuild", p, err)
		} else {
			t.Log(err)
		}
	})
}

func TestLayoutOfAnotherVersionIsRefused(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		s := testenv.StartSubject(t, in)
		p, err := OpenProcess(s.PID())
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		for _, v := range []Version{{3, 6, 15}, {3, 7, 16}, {3, 8, 18}, {3, 9, 18}, {3, 10, 13}, {3, 11, 7}, {3, 12, 1}, {3, 13, 0}, {3, 14, 0}, {3, 15, 0}} {
			if v.Minor == p.in.Version.Minor {
				continue
			}
			im := p.image
			im.layout, err = layoutOf(im.mem, v, im.listHead)
			if err == nil {
				err = im.check(v)
			}
			if !errors.Is(err, ErrUnsupportedBuild) && !errors.Is(err, ErrNotReady) {
				t.Errorf("%s read as %s: %v, want a refusal", p.in.Version, v, err)
			}
		}
	})
}

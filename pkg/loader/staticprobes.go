package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"sca-probe/bpf"
)

// A Kind is what an event tells.
type Kind uint8

// The kinds of events, as bpf/usdt.bpf.c numbers them.
const (
	hit Kind = iota
	Patched
	Reverted
)

var kinds = map[string]Kind{"hit": hit, "patched": Patched, "reverted": Reverted}

// An Event is one firing of sca:patched or sca:reverted.
type Event struct {
	Kind                      Kind
	Target                    string
	PatchedCode, OriginalCode uint64
}

// maxEvents bounds the events that are kept; those past it are counted as lost.
const maxEvents = 100_000

// StaticProbes listens to the engine's static probes in one process.
type StaticProbes struct {
	*collection
	reader  *ringbuf.Reader
	done    chan struct{} // closed when collect has ended
	flushed chan struct{} // receives when collect has caught up with a flush

	mu      sync.Mutex
	events  []Event
	dropped uint64
}

// NewStaticProbes listens from now on. engine is the engine's file, as the process has it mapped.
func NewStaticProbes(pid int, engine string) (*StaticProbes, error) {
	notes, err := readNotes(engine)
	if err != nil {
		return nil, err
	}
	spec, err := bpf.LoadStaticProbe()
	if err != nil {
		return nil, err
	}
	loaded, err := newCollection(spec, "sca_static_probe")
	if err != nil {
		return nil, err
	}
	s := &StaticProbes{collection: loaded}
	if err := s.start(pid, engine, notes); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *StaticProbes) start(pid int, engine string, notes []note) error {
	var probes []probe
	for _, n := range notes {
		kind, known := kinds[n.name]
		if !known {
			continue
		}
		location := bpf.StaticProbeLocation{Kind: uint64(kind)}
		if len(n.arguments) != len(location.Arguments) {
			return fmt.Errorf("%w in %s: sca:%s has %d arguments, not %d", ErrNoProbes, engine, n.name, len(n.arguments), len(location.Arguments))
		}
		for i, arg := range n.arguments {
			location.Arguments[i].Form, location.Arguments[i].Reg, location.Arguments[i].Value = arg.form, arg.reg, arg.value
		}
		if err := s.maps["locations"].Put(uint32(len(probes)), &location); err != nil {
			return fmt.Errorf("configuring sca:%s: %w", n.name, err)
		}
		probes = append(probes, n.probe)
	}
	if len(probes) == 0 {
		return fmt.Errorf("%w in %s: neither sca:hit, sca:patched nor sca:reverted", ErrNoProbes, engine)
	}
	var err error
	if s.reader, err = ringbuf.NewReader(s.maps["events"]); err != nil {
		return fmt.Errorf("opening the events' buffer: %w", err)
	}
	s.done, s.flushed = make(chan struct{}), make(chan struct{})
	go s.collect()
	return s.attach(engine, pid, probes)
}

func (s *StaticProbes) collect() {
	defer close(s.done)
	const target = 24 // offset of the text in struct event
	var record ringbuf.Record
	for {
		err := s.reader.ReadInto(&record)
		if errors.Is(err, ringbuf.ErrFlushed) {
			s.flushed <- struct{}{}
			continue
		}
		if err != nil {
			return // closed
		}
		raw := record.RawSample
		if len(raw) < target {
			continue
		}
		event := Event{
			Kind:         Kind(raw[0]),
			PatchedCode:  binary.LittleEndian.Uint64(raw[8:]),
			OriginalCode: binary.LittleEndian.Uint64(raw[16:]),
			Target:       unix.ByteSliceToString(raw[target:]),
		}
		s.mu.Lock()
		if len(s.events) < maxEvents {
			s.events = append(s.events, event)
		} else {
			s.dropped++
		}
		s.mu.Unlock()
	}
}

// Hits returns the firings of sca:hit so far, by address of the patched code object.
func (s *StaticProbes) Hits() (map[uint64]uint64, error) {
	counts := map[uint64]uint64{}
	var address uint64
	var values []uint64
	all := s.maps["hits"].Iterate()
	for all.Next(&address, &values) {
		counts[address] = total(values)
	}
	return counts, all.Err()
}

// Events returns the patches and reverts so far.
func (s *StaticProbes) Events() []Event {
	if s.reader.Flush() == nil { // what the kernel has handed over is read before this returns
		<-s.flushed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Event(nil), s.events...)
}

// Lost returns how many firings were lost. While it is not 0, counts are lower bounds.
func (s *StaticProbes) Lost() (uint64, error) {
	kernel, err := sum(s.maps["lost"])
	s.mu.Lock()
	defer s.mu.Unlock()
	return kernel + s.dropped, err
}

// Close detaches the probes, which lowers their semaphores.
func (s *StaticProbes) Close() error {
	err := s.collection.Close()
	if s.reader != nil {
		err = errors.Join(err, s.reader.Close())
		<-s.done
	}
	return err
}

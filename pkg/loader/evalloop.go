package loader

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"sca-probe/bpf"
	"sca-probe/pkg/pyframes/evalloop"
)

// A Code is a code object to count the starts of. Its address alone does not name it: CPython uses
// the address again soon after the object was freed.
type Code struct {
	Addr      uint64
	Name      uint64 // address of the str co_name
	FirstLine uint32
}

// A CodeLayout says where in a code object those are.
type CodeLayout struct {
	Name, FirstLine uint32
}

// An EvalLoopCounter counts the starts of code objects in one process.
type EvalLoopCounter struct {
	objects bpf.EvalLoopObjects
	links   []link.Link
	cpus    int
}

// NewEvalLoopCounter counts the starts of code objects from now on. binary is the file that holds the
// process's eval loop, and table what is known of it.
func NewEvalLoopCounter(pid int, binary string, table *evalloop.Table, layout CodeLayout, codes []Code) (*EvalLoopCounter, error) {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("counting CPUs: %w", err)
	}
	spec, err := bpf.LoadEvalLoop()
	if err != nil {
		return nil, err
	}
	if err := prepare(spec); err != nil {
		return nil, err
	}
	c := &EvalLoopCounter{cpus: cpus}
	if err := spec.LoadAndAssign(&c.objects, nil); err != nil {
		return nil, fmt.Errorf("loading the eval-loop program: %w", permission(err))
	}
	if err := c.start(pid, binary, table, layout, codes); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *EvalLoopCounter) start(pid int, binary string, table *evalloop.Table, layout CodeLayout, codes []Code) error {
	if max := int(c.objects.Sites.MaxEntries()); len(table.Sites) > max {
		return fmt.Errorf("%d probe sites, more than the limit of %d", len(table.Sites), max)
	}
	probes := make([]probe, len(table.Sites))
	for i, s := range table.Sites {
		site := bpf.EvalLoopSite{
			CodeTag:       table.CodeTag,
			FrameCode:     table.FrameCode,
			EvalBreaker:   table.EvalBreaker,
			Tracing:       table.ThreadTracing,
			CodeVersion:   table.CodeVersion,
			CodeName:      layout.Name,
			CodeFirstLine: layout.FirstLine,
			ThreadDisp:    s.Thread.Disp,
			Frame:         uint8(s.Frame),
			Instr:         uint8(s.Instr),
			InstrAhead:    s.InstrAhead,
			Redispatch:    flag(table.Redispatch),
			Thread:        uint8(s.Thread.Base),
			ThreadMemory:  flag(s.Thread.Memory),
		}
		if s.Opcode != table.ResumeCheck {
			site.SkipOpcode = table.ResumeCheck
		}
		if err := c.objects.Sites.Put(uint32(i), &site); err != nil {
			return fmt.Errorf("configuring probe site %d: %w", i, err)
		}
		probes[i] = probe{offset: s.Offset}
	}
	for _, code := range codes {
		if err := c.Watch(code); err != nil {
			return err
		}
	}
	var err error
	c.links, err = attach(binary, pid, c.objects.ScaResume, probes)
	return err
}

func flag(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

// Watch counts one more code object, from now on. One that is watched already goes on as it was.
func (c *EvalLoopCounter) Watch(code Code) error {
	entries := make([]bpf.EvalLoopStart, c.cpus)
	for i := range entries {
		entries[i].Name, entries[i].FirstLine = code.Name, code.FirstLine
	}
	err := c.objects.Starts.Update(code.Addr, entries, ebpf.UpdateNoExist)
	if err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
		return fmt.Errorf("watching the code object at %#x: %w", code.Addr, err)
	}
	return nil
}

// Counts returns the starts so far, by address of the code object.
func (c *EvalLoopCounter) Counts() (map[uint64]uint64, error) {
	counts := map[uint64]uint64{}
	var address uint64
	var entries []bpf.EvalLoopStart
	all := c.objects.Starts.Iterate()
	for all.Next(&address, &entries) {
		for _, entry := range entries {
			counts[address] += entry.Count
		}
	}
	return counts, all.Err()
}

// Faults returns how many starts could not be looked at, since memory could not be read. While it
// is not 0, counts are lower bounds.
func (c *EvalLoopCounter) Faults() (uint64, error) { return sum(c.objects.Faults) }

// Close detaches the probes.
func (c *EvalLoopCounter) Close() error {
	return errors.Join(closeLinks(c.links), c.objects.Close())
}

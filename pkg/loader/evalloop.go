package loader

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"

	"sca-probe/bpf"
	"sca-probe/pkg/pyframes/evalloop"
)

// A Code names a code object. Its address alone does not: CPython uses the address again soon after
// the object was freed.
type Code struct {
	Addr      uint64
	Name      uint64 // address of the str co_name
	FirstLine uint32
}

// A CodeLayout says where in a code object, and in a str, what the kernel programs read is. Counting
// needs Name and FirstLine; following needs all, with QualName 0 before 3.11.
type CodeLayout struct {
	Name, FirstLine, QualName, Filename, Flags uint32
	StrLength, StrState, StrASCII              uint32 // PyASCIIObject.length, .state, and its end
}

// The names in bpf/evalloop.bpf.c.
const (
	countProgram  = "sca_count"
	followProgram = "sca_follow"
	sitesMap      = "sites"
	statsMap      = "stats"
	startsMap     = "starts"
	seenMap       = "seen"
	firstsMap     = "firsts"
)

// An evalLoop is a program of bpf/evalloop.bpf.c.
type evalLoop struct{ *collection }

// probe attaches to one file's sites.
func (e evalLoop) probe(pid int, binary string, table *evalloop.Table, sites []evalloop.Site, layout CodeLayout) error {
	m := e.maps[sitesMap]
	if max := int(m.MaxEntries()); e.probes+len(sites) > max {
		return fmt.Errorf("%d probe sites, more than the limit of %d", e.probes+len(sites), max)
	}
	probes := make([]probe, len(sites))
	for i, s := range sites {
		site := siteOf(table, s, layout)
		if err := m.Put(uint32(e.probes+i), &site); err != nil {
			return fmt.Errorf("configuring probe site %d: %w", i, err)
		}
		probes[i] = probe{offset: s.Offset}
	}
	return e.attach(binary, pid, probes)
}

func siteOf(table *evalloop.Table, s evalloop.Site, layout CodeLayout) bpf.EvalLoopSite {
	site := bpf.EvalLoopSite{
		CodeTag:       table.CodeTag,
		FrameCode:     table.FrameCode,
		FrameLastI:    table.FrameLastI,
		CodeName:      layout.Name,
		CodeFirstLine: layout.FirstLine,
		CodeQualname:  layout.QualName,
		CodeFilename:  layout.Filename,
		CodeFlags:     layout.Flags,
		StrLength:     layout.StrLength,
		StrState:      layout.StrState,
		StrAscii:      layout.StrASCII,
		Entry:         flag(table.Entry),
		Throw:         uint8(s.Throw),
		LocationBits:  table.LocationBits,
		Stepped:       flag(!s.Emulated),
	}
	for _, location := range []struct {
		from evalloop.Location
		to   *bpf.EvalLoopLocation
	}{{s.Frame, &site.Frame}, {s.Instr, &site.Instr}, {s.Thread, &site.Thread}} {
		from := location.from
		*location.to = bpf.EvalLoopLocation{Base: uint8(from.Base), Memory: flag(from.Memory), Disp: from.Disp, Add: from.Add}
	}
	if table.Version != nil {
		site.Versioned = 1
		site.Interpreter, site.CurrentVersion = table.Version.Interpreter, table.Version.Current
		site.CodeVersion, site.Tracing = table.Version.CodeVersion, table.Version.Tracing
		site.Events = table.Version.Events
	}
	isCheck := false
	for _, opcode := range table.Checks {
		isCheck = isCheck || opcode == s.Opcode
	}
	if !isCheck {
		copy(site.Checks[:], table.Checks)
	}
	return site
}

func flag(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

// stats reads what the program says of itself.
func (e evalLoop) stats() (hits, stepped uint64, lost Losses, err error) {
	var perCPU []bpf.EvalLoopStats
	if err := e.maps[statsMap].Lookup(uint32(0), &perCPU); err != nil {
		return 0, 0, Losses{}, err
	}
	for _, s := range perCPU {
		hits, stepped = hits+s.Hits, stepped+s.Stepped
		lost.Faults, lost.Full, lost.Dropped = lost.Faults+s.Faults, lost.Full+s.Full, lost.Dropped+s.Dropped
	}
	return hits, stepped, lost, nil
}

// An EvalLoopCounter counts the starts of code objects in one process, exactly.
type EvalLoopCounter struct {
	evalLoop
	cpus int
}

// maxChosen is how many code objects NewEvalLoopCounter counts at most, maxAll how many
// NewEvalLoopCounterOfAll does unless told otherwise.
const (
	maxChosen = 16384
	maxAll    = 65536
)

// NewEvalLoopCounter counts the starts of the given code objects from now on. binary is the file that
// holds the process's eval loop, and table what is known of it.
func NewEvalLoopCounter(pid int, binary string, table *evalloop.Table, layout CodeLayout, codes []Code) (*EvalLoopCounter, error) {
	return newCounter(pid, binary, table, layout, codes, false, maxChosen)
}

// NewEvalLoopCounterOfAll counts the starts of every code object of the process, as many as maxCodes
// different ones (0: 65536). Starts of others are counted as lost.
func NewEvalLoopCounterOfAll(pid int, binary string, table *evalloop.Table, layout CodeLayout, maxCodes int) (*EvalLoopCounter, error) {
	if maxCodes == 0 {
		maxCodes = maxAll
	}
	return newCounter(pid, binary, table, layout, nil, true, maxCodes)
}

func newCounter(pid int, binary string, table *evalloop.Table, layout CodeLayout, codes []Code, all bool, maxCodes int) (*EvalLoopCounter, error) {
	if pid <= 0 {
		return nil, fmt.Errorf("counting starts in process %d: there is no such process", pid)
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("counting CPUs: %w", err)
	}
	spec, err := bpf.LoadEvalLoop()
	if err != nil {
		return nil, err
	}
	spec.Maps[startsMap].MaxEntries = uint32(maxCodes)
	if err := spec.Variables["count_all"].Set(flag(all)); err != nil {
		return nil, err
	}
	loaded, err := newCollection(spec, countProgram)
	if err != nil {
		return nil, err
	}
	c := &EvalLoopCounter{evalLoop: evalLoop{loaded}, cpus: cpus}
	for _, code := range codes {
		if err := c.Watch(code); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	if err := c.probe(pid, binary, table, table.Sites, layout); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Watch counts one more code object, from now on. One that is counted already goes on as it was.
func (c *EvalLoopCounter) Watch(code Code) error {
	key := bpf.EvalLoopCode{Addr: code.Addr, Name: code.Name, FirstLine: code.FirstLine}
	err := c.maps[startsMap].Update(key, make([]uint64, c.cpus), ebpf.UpdateNoExist)
	if err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
		return fmt.Errorf("watching the code object at %#x: %w", code.Addr, err)
	}
	return nil
}

// Starts returns the starts so far.
func (c *EvalLoopCounter) Starts() (map[Code]uint64, error) {
	counts := map[Code]uint64{}
	var key bpf.EvalLoopCode
	var values []uint64
	all := c.maps[startsMap].Iterate()
	for all.Next(&key, &values) {
		counts[Code{key.Addr, key.Name, key.FirstLine}] = total(values)
	}
	return counts, all.Err()
}

// Losses returns what could not be counted so far.
func (c *EvalLoopCounter) Losses() (Losses, error) {
	_, _, lost, err := c.stats()
	return lost, err
}

// Hits returns how often the probes were hit so far: by starts, counted or not, and by resumed
// generators and coroutines.
func (c *EvalLoopCounter) Hits() (uint64, error) {
	hits, _, _, err := c.stats()
	return hits, err
}

// Cost estimates how much time the probes have taken from the process so far, by what a hit costs.
func (c *EvalLoopCounter) Cost(hit HitCost) (time.Duration, error) {
	hits, stepped, _, err := c.stats()
	return hit.total(hits, stepped), err
}

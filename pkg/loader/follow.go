package loader

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"sca-probe/bpf"
	"sca-probe/pkg/pyframes/evalloop"
)

// A First is the first start of a code object that a follower saw.
type First struct {
	Time     time.Duration // since the machine's boot, suspended time included
	PID, TID int           // in the initial PID namespace
	Code     Code
	// Name is co_qualname, or before 3.11 co_name; Filename is co_filename. Each is "" when it is not
	// ASCII or could not be read: read it from the process, while that lives. It ends in … when it is
	// longer than the 127 or 255 bytes that the kernel passes on.
	Name, Filename string
	Flags          uint32 // co_flags
}

// Named reports whether Name and Filename are whole, as they were when the code object started.
func (f First) Named() bool { return isWhole(f.Name) && isWhole(f.Filename) }

// FollowOptions bound what the kernel keeps for a Follower.
type FollowOptions struct {
	// MaxCodes is how many code objects of all processes together are told of, 65,536 if it is 0. Each
	// takes some 90 bytes, told of or not.
	MaxCodes int
	// BufferSize is the size of the buffer of events in bytes, 4 MiB if it is 0: a page times a power
	// of two. An event takes 184 bytes, or 440 where its name or path is long.
	BufferSize int
}

// A Follower tells of the first start of each code object, as it happens. It probes only what a code
// object that never ran passes: from 3.11 on, but for 3.12, warm code does not come by and costs
// nothing. On 3.12 and up to 3.10 every start comes by, and those that were told of are dropped in the
// kernel.
//
// What ran before a process was attached is told of when it starts again, if it still comes by.
// A forked child's code objects are told of anew, as far as they come by: those that the parent had
// run are warm.
type Follower struct {
	evalLoop
	buffer[bpf.EvalLoopFirstEvent]
	record ringbuf.Record
	texts  map[string]string  // each text that was read, once
	told   map[int][]toldCode // of each process, what is in the kernel's map
}

// A toldCode is a key of the kernel's map, and when it was put there.
type toldCode struct {
	code Code
	at   time.Duration
}

// NewFollower makes a follower that follows nothing yet.
func NewFollower(options FollowOptions) (*Follower, error) {
	spec, err := bpf.LoadEvalLoop()
	if err != nil {
		return nil, err
	}
	if options.MaxCodes != 0 {
		spec.Maps[seenMap].MaxEntries = uint32(options.MaxCodes)
	}
	if options.BufferSize != 0 {
		spec.Maps[firstsMap].MaxEntries = uint32(options.BufferSize)
	}
	loaded, err := newCollection(spec, followProgram)
	if err != nil {
		return nil, err
	}
	f := &Follower{evalLoop: evalLoop{loaded}, texts: map[string]string{}, told: map[int][]toldCode{}}
	if f.buffer, err = openBuffer[bpf.EvalLoopFirstEvent](f.maps[firstsMap]); err != nil {
		return nil, errors.Join(err, f.evalLoop.Close())
	}
	return f, nil
}

// Follow adds one process or, with pid 0, every process that runs the binary, now or later.
func (f *Follower) Follow(pid int, binary string, table *evalloop.Table, layout CodeLayout) error {
	if pid < 0 {
		return fmt.Errorf("following process %d: there is no such process", pid)
	}
	var sites []evalloop.Site
	for _, site := range table.Sites {
		if !site.Specialised {
			sites = append(sites, site)
		}
	}
	return f.probe(pid, binary, table, sites, layout)
}

// The sizes of events, which tell them apart, and of what both begin with.
var (
	shortFirst = binary.Size(bpf.EvalLoopShortFirst{})
	longFirst  = binary.Size(bpf.EvalLoopLongFirst{})
	firstHead  = binary.Size(bpf.EvalLoopFirst{})
)

// Read returns the next first start. The kernel wakes it once an eighth of the buffer is full, as waking is dear to
// the process that is followed; until then it waits for the deadline, and then returns what is there: set one. It
// returns [ErrClosed] after Close.
func (f *Follower) Read() (First, error) {
	if err := f.reader.ReadInto(&f.record); err != nil {
		return First{}, err
	}
	// By hand: encoding/binary would look at each of some 150 characters by reflection.
	raw := f.record.RawSample
	name := len(bpf.EvalLoopShortFirst{}.Name)
	switch len(raw) {
	case shortFirst:
	case longFirst:
		name = len(bpf.EvalLoopLongFirst{}.Name)
	default:
		return First{}, fmt.Errorf("reading an event of %d bytes: none has so many", len(raw))
	}
	word, half := binary.LittleEndian.Uint64, binary.LittleEndian.Uint32 // in the order of struct first
	first := First{
		Time: time.Duration(word(raw)),
		Code: Code{word(raw[8:]), word(raw[16:]), half(raw[24:])},
		PID:  int(half(raw[28:])), TID: int(half(raw[32:])),
		Flags: half(raw[44:]),
	}
	texts := raw[firstHead:]
	first.Name = f.text(texts[:name], int32(half(raw[36:])))
	first.Filename = f.text(texts[name:], int32(half(raw[40:])))
	f.told[first.PID] = append(f.told[first.PID], toldCode{first.Code, first.Time})
	return first, nil
}

// maxTexts bounds the texts that are kept. A Python process has a few thousand different ones, and most of
// them are another's too.
const maxTexts = 1 << 16

// text returns a str of the given length, as much of it as is there.
func (f *Follower) text(chars []byte, length int32) string {
	if length < 0 {
		return ""
	}
	chars, _, _ = bytes.Cut(chars, []byte{0})
	if text, known := f.texts[string(chars)]; known && len(chars) == int(length) {
		return text
	}
	text := string(chars)
	if len(chars) < int(length) {
		return text + ellipsis
	}
	if len(f.texts) == maxTexts {
		clear(f.texts)
	}
	f.texts[text] = text
	return text
}

// ellipsis is at the end of what is cut off. It is not ASCII, so nothing that is whole has it.
const ellipsis = "…"

func isWhole(text string) bool { return text != "" && !strings.HasSuffix(text, ellipsis) }

// Losses returns what could not be told so far: Full counts starts of code objects past MaxCodes,
// Dropped those that found the buffer full, of which a later start may still be told.
func (f *Follower) Losses() (Losses, error) {
	_, _, lost, err := f.stats()
	return lost, err
}

// Forget makes room: what a process ran until a time, as of [First.Time], need not be remembered, since it
// has ended or replaced its program. It concerns what Read has returned.
func (f *Follower) Forget(pid int, until time.Duration) error {
	seen := f.maps[seenMap]
	var later []toldCode
	for _, told := range f.told[pid] {
		if told.at > until {
			later = append(later, told)
			continue
		}
		key := bpf.EvalLoopCode{Addr: told.code.Addr, Name: told.code.Name, FirstLine: told.code.FirstLine, Tgid: uint32(pid)}
		if err := seen.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forgetting process %d: %w", pid, err)
		}
	}
	if f.told[pid] = later; len(later) == 0 {
		delete(f.told, pid)
	}
	return nil
}

// Close detaches the probes and ends a Read that waits.
func (f *Follower) Close() error { return errors.Join(f.evalLoop.Close(), f.reader.Close()) }

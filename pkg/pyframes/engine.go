package pyframes

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/prometheus/procfs"

	"sca-probe/pkg/internal/bounded"
)

// An Engine is what the engine in a process says of itself: struct sca_engine in
// cmd/sca-engine/extension/numbers.h.
type Engine struct {
	State EngineState
	Forks int // between the process that started the engine and this one
	// Numbers are what the engine counts, by name: "targets", "patched", "patches". Gauges are of now,
	// counters of all its life.
	Numbers map[string]uint64
}

// An EngineState is how far the engine has come.
type EngineState uint32

// The states of the engine, as enum sca_engine_state numbers them.
const (
	EngineOff EngineState = iota
	EngineStarting
	EngineRunning
	EngineRefused
	EngineStopped
	EngineHalted // it ran, and cannot go on; its patches stay as they are
)

var engineStates = []string{"off", "starting", "running", "refused", "stopped", "halted"}

// String returns "off", "starting", "running", "refused", "stopped" or "halted".
func (s EngineState) String() string {
	if int(s) < len(engineStates) {
		return engineStates[s]
	}
	return fmt.Sprintf("EngineState(%d)", uint32(s))
}

// MarshalText makes an EngineState a word in JSON.
func (s EngineState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

const (
	engineSymbol = "sca_engine"
	engineMagic  = 0x656e69676e456173
	engineABI    = 1
	engineHead   = 24 // size of struct sca_engine without its numbers
)

// engineNumbers are the names in the order of enum sca_number, cmd/sca-engine/host.h.
var engineNumbers = []string{
	"targets", "patched", "pending", "unresolved", "hooks", "updates", "updates_refused", "patches", "reverts",
	"failures", "imports", "imports_late", "heap_walks", "turns", "turn_ns", "turn_max_ns", "log_lines_dropped",
}

// Engine reads what the engine says of itself, nil when none is mapped.
func (p *Process) Engine() (*Engine, error) {
	path, maps, ok := p.engineMaps()
	if !ok {
		return nil, p.Gone()
	}
	addr, err := engineAddress(path, maps)
	if err != nil {
		return nil, fmt.Errorf("engine in process %d: %w", p.pid, err)
	}
	raw := make([]byte, engineHead+8*len(engineNumbers))
	if err := p.ReadMemory(raw, addr); err != nil {
		return nil, fmt.Errorf("engine in process %d: %w", p.pid, err)
	}
	if magic := binary.LittleEndian.Uint64(raw); magic != engineMagic {
		return nil, fmt.Errorf("engine in process %d: %w: its numbers at %#x begin with %#x", p.pid, ErrCorrupt, addr, magic)
	}
	abi, count := binary.LittleEndian.Uint32(raw[8:]), binary.LittleEndian.Uint32(raw[20:])
	if abi != engineABI || int(count) != len(engineNumbers) {
		return nil, fmt.Errorf("engine in process %d: its numbers have ABI %d with %d of them, this observer knows %d with %d: update the older of the two", p.pid, abi, count, engineABI, len(engineNumbers))
	}
	e := &Engine{
		State:   EngineState(binary.LittleEndian.Uint32(raw[12:])),
		Forks:   int(binary.LittleEndian.Uint32(raw[16:])),
		Numbers: make(map[string]uint64, len(engineNumbers)),
	}
	for i, name := range engineNumbers {
		e.Numbers[name] = binary.LittleEndian.Uint64(raw[engineHead+8*i:])
	}
	return e, nil
}

// engineAddress returns where the engine's numbers are.
func engineAddress(path string, maps []*procfs.ProcMap) (uint64, error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("open it: %w", procError(err))
	}
	defer file.Close()
	f, err := bounded.ELF(file)
	if err != nil {
		return 0, errors.Join(ErrCorrupt, err)
	}
	symbols, err := f.DynamicSymbols()
	if err != nil {
		return 0, errors.Join(ErrCorrupt, err)
	}
	for _, s := range symbols {
		if s.Name == engineSymbol && s.Section != elf.SHN_UNDEF {
			bias, err := loadBias(path, loadSegments(f), maps)
			return s.Value + bias, err
		}
	}
	return 0, fmt.Errorf("%s has no symbol %s: it is older than this observer", path, engineSymbol)
}

// EnginePath returns a path like [Process.BinaryPath] to the engine that is mapped now:
// a file _engine*.abi3.so with static probes of the provider sca. It returns false when
// there is none, and when the process cannot be read.
func (p *Process) EnginePath() (string, bool) {
	path, _, ok := p.engineMaps()
	return path, ok
}

// engineMaps returns the path of the engine, and where it is mapped.
func (p *Process) engineMaps() (string, []*procfs.ProcMap, bool) {
	all, err := readMaps(p.pid)
	if err != nil {
		return "", nil, false
	}
	seen := make(map[string]bool)
	for i, m := range all {
		base := filepath.Base(strings.TrimSuffix(m.Pathname, deletedSuffix))
		if !strings.HasPrefix(base, "_engine") || !strings.HasSuffix(base, ".abi3.so") || seen[m.Pathname] {
			continue
		}
		seen[m.Pathname] = true
		path, f, err := openMapped(p.pid, m)
		if err != nil {
			continue
		}
		is := hasProbes(f, "sca")
		f.Close()
		if !is || p.Gone() != nil {
			continue
		}
		var maps []*procfs.ProcMap
		for _, other := range all[i:] {
			if other.Pathname == m.Pathname && other.Inode == m.Inode {
				maps = append(maps, other)
			}
		}
		return path, maps, true
	}
	return "", nil, false
}

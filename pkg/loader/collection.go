package loader

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// ErrPermission says that the kernel does not let this user load or attach programs.
var ErrPermission = errors.New("not permitted: run as root, or with CAP_BPF and CAP_PERFMON (CAP_SYS_ADMIN before Linux 5.8)")

// A collection is one kernel program with its maps, and where it is attached.
type collection struct {
	spec     *ebpf.CollectionSpec
	name     string // of the program
	maps     map[string]*ebpf.Map
	programs []*ebpf.Program
	links    []link.Link
	probes   int // attached so far
}

// constants holds the variables that are constant to the kernel. Each load has its own.
const constants = ".rodata"

// onlyProbe is the variable that tells a program which probe it is for, on kernels without cookies.
const onlyProbe = "sca_only_probe"

// newCollection makes the maps of the one program out of spec; attach loads the program itself.
func newCollection(spec *ebpf.CollectionSpec, program string) (*collection, error) {
	unlockMemory()
	c := &collection{spec: spec, name: program, maps: map[string]*ebpf.Map{}}
	used := map[string]bool{constants: true}
	for _, in := range spec.Programs[program].Instructions {
		if in.IsLoadFromMap() {
			used[in.Reference()] = true
		}
	}
	for name := range spec.Programs {
		if name != program {
			delete(spec.Programs, name)
		}
	}
	for name, m := range spec.Maps {
		switch {
		case !used[name]:
			delete(spec.Maps, name)
		case name != constants:
			made, err := ebpf.NewMap(m)
			if err != nil {
				return nil, errors.Join(fmt.Errorf("making the map %s: %w", name, permission(err)), c.Close())
			}
			c.maps[name] = made
		}
	}
	return c, nil
}

// unlockMemory is needed before Linux 5.11 only, and refused where CAP_SYS_RESOURCE is missing; if it
// was needed after all, loading says so.
func unlockMemory() { _ = rlimit.RemoveMemlock() }

// load loads the program once more; only is the index of its one probe, or -1 where there are cookies.
func (c *collection) load(only int) (*ebpf.Program, error) {
	spec := c.spec.Copy()
	if !multiSupported() {
		for _, program := range spec.Programs {
			if program.AttachType == ebpf.AttachTraceUprobeMulti {
				program.AttachType = ebpf.AttachNone
			}
		}
	}
	if variable := spec.Variables[onlyProbe]; variable != nil {
		if err := variable.Set(int32(only)); err != nil {
			return nil, err
		}
	}
	loaded, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: c.maps})
	if err != nil {
		return nil, fmt.Errorf("loading the program %s: %w", c.name, permission(err))
	}
	defer loaded.Close()
	program := loaded.DetachProgram(c.name)
	c.programs = append(c.programs, program)
	return program, nil
}

// Close detaches the probes and frees what the kernel holds.
func (c *collection) Close() error {
	var errs []error
	for _, l := range c.links {
		errs = append(errs, l.Close())
	}
	for _, p := range c.programs {
		errs = append(errs, p.Close())
	}
	for _, m := range c.maps {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// What this kernel has. They are variables so that tests can cover older kernels on a new one.
var (
	multiSupported   = func() bool { return features.HaveBPFLinkUprobeMulti() == nil }
	cookiesSupported = func() bool {
		return !errors.Is(features.HaveProgramHelper(ebpf.Kprobe, asm.FnGetAttachCookie), ebpf.ErrNotSupported)
	}
)

// permission makes an error that says what privilege is missing.
func permission(err error) error {
	if err != nil && errors.Is(err, os.ErrPermission) {
		var errno unix.Errno
		if errors.As(err, &errno) {
			err = errno // what it is wrapped in gives advice to programmers
		}
		return fmt.Errorf("%w (%w)", ErrPermission, err)
	}
	return err
}

// sum adds up a per-CPU array of one element.
func sum(m *ebpf.Map) (uint64, error) {
	var values []uint64
	if err := m.Lookup(uint32(0), &values); err != nil {
		return 0, err
	}
	return total(values), nil
}

func total(values []uint64) uint64 {
	var n uint64
	for _, value := range values {
		n += value
	}
	return n
}

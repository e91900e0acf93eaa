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
)

// ErrPermission says that the kernel does not let this user load or attach programs.
var ErrPermission = errors.New("not permitted: run as root, or with CAP_BPF and CAP_PERFMON (CAP_SYS_ADMIN before Linux 5.8)")

// ErrKernel says that the kernel lacks what the programs need.
var ErrKernel = errors.New("the kernel is too old: eBPF probes with attach cookies need Linux 5.15 or later")

// A probe is one place in a file.
type probe struct {
	offset    uint64 // in the file
	semaphore uint64 // its offset in the file, or 0
}

// attach puts program at each probe, for one process. A probe's cookie is its index.
//
// uprobe_multi (Linux 6.6) attaches all at once; before it, each probe is a perf event, whose cookie
// needs Linux 5.15.
func attach(path string, pid int, program *ebpf.Program, probes []probe) ([]link.Link, error) {
	executable, err := link.OpenExecutable(path)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, permission(err))
	}
	if multiSupported() {
		options := &link.UprobeMultiOptions{PID: uint32(pid)}
		for i, p := range probes {
			options.Addresses = append(options.Addresses, p.offset)
			options.RefCtrOffsets = append(options.RefCtrOffsets, p.semaphore)
			options.Cookies = append(options.Cookies, uint64(i))
		}
		l, err := executable.UprobeMulti(nil, program, options)
		if err != nil {
			return nil, fmt.Errorf("attaching to %s: %w", path, permission(err))
		}
		return []link.Link{l}, nil
	}
	var links []link.Link
	for i, p := range probes {
		l, err := executable.Uprobe("", program, &link.UprobeOptions{
			Address: p.offset, PID: pid, Cookie: uint64(i), RefCtrOffset: p.semaphore,
		})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("attaching to %s: %w", path, permission(err)), closeLinks(links))
		}
		links = append(links, l)
	}
	return links, nil
}

func closeLinks(links []link.Link) error {
	var errs []error
	for _, l := range links {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// multiSupported is a variable so that a test can cover older kernels on a new one.
var multiSupported = func() bool { return features.HaveBPFLinkUprobeMulti() == nil }

// prepare readies a collection for this kernel, or says that it is too old.
func prepare(spec *ebpf.CollectionSpec) error {
	if errors.Is(features.HaveProgramHelper(ebpf.Kprobe, asm.FnGetAttachCookie), ebpf.ErrNotSupported) {
		return ErrKernel
	}
	// Needed before Linux 5.11 only, and refused where CAP_SYS_RESOURCE is missing; if it was
	// needed after all, loading says so.
	_ = rlimit.RemoveMemlock()
	if !multiSupported() {
		for _, program := range spec.Programs {
			program.AttachType = ebpf.AttachNone
		}
	}
	return nil
}

// permission makes an error that says what privilege is missing.
func permission(err error) error {
	if err != nil && errors.Is(err, os.ErrPermission) {
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

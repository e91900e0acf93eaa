package loader

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// A probe is one place in a file.
type probe struct {
	offset    uint64 // in the file
	semaphore uint64 // its offset in the file, or 0
}

// attach puts the program at each probe, for one process or, with pid 0, for every process that has
// the file mapped, now or later. The probes' indices go on from those attached before.
//
// uprobe_multi (Linux 6.6) attaches all at once; before it, each probe is a perf event. What tells a
// program which probe was hit is a cookie (Linux 5.15); before it, each probe has a program of its own.
//
// The kernel finds the file by path, once: a path in /proc/PID/map_files leads to the very file that
// is mapped, in whatever mount namespace, deleted or replaced.
func (c *collection) attach(path string, pid int, probes []probe) error {
	executable, err := link.OpenExecutable(path)
	if err != nil {
		return fmt.Errorf("opening %s: %w", path, permission(err))
	}
	if cookiesSupported() {
		if len(c.programs) == 0 {
			if _, err := c.load(-1); err != nil {
				return err
			}
		}
		return c.attachOne(executable, path, pid, c.programs[0], probes, c.probes)
	}
	for i, p := range probes {
		program, err := c.load(c.probes)
		if err != nil {
			return err
		}
		if err := c.attachOne(executable, path, pid, program, probes[i:i+1], c.probes); err != nil {
			return fmt.Errorf("probe at %#x: %w", p.offset, err)
		}
	}
	return nil
}

// attachOne puts one program at probes whose cookies count from first on.
func (c *collection) attachOne(executable *link.Executable, path string, pid int, program *ebpf.Program, probes []probe, first int) error {
	if multiSupported() {
		options := &link.UprobeMultiOptions{PID: uint32(pid)}
		for i, p := range probes {
			options.Addresses = append(options.Addresses, p.offset)
			options.RefCtrOffsets = append(options.RefCtrOffsets, p.semaphore)
			options.Cookies = append(options.Cookies, uint64(first+i))
		}
		l, err := undisturbed(func() (link.Link, error) { return executable.UprobeMulti(nil, program, options) })
		if err != nil {
			return fmt.Errorf("attaching to %s: %w", path, permission(err))
		}
		c.links = append(c.links, l)
		c.probes += len(probes)
		return nil
	}
	for i, p := range probes {
		options := &link.UprobeOptions{Address: p.offset, PID: pid, RefCtrOffset: p.semaphore}
		if cookiesSupported() {
			options.Cookie = uint64(first + i)
		}
		l, err := undisturbed(func() (link.Link, error) { return executable.Uprobe("", program, options) })
		if err != nil {
			return fmt.Errorf("attaching to %s: %w", path, permission(err))
		}
		c.links = append(c.links, l)
		c.probes++
	}
	return nil
}

// undisturbed calls the kernel until what it says is not of the moment: Go's runtime interrupts system calls
// by signals, and a process that is being replaced (exec) is locked.
func undisturbed[T any](call func() (T, error)) (T, error) {
	const times = 100
	for i := 1; ; i++ {
		made, err := call()
		if i == times || !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return made, err
		}
		time.Sleep(time.Millisecond)
	}
}

package pyframes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// memory is an address space that is only read.
type memory interface {
	// readAt fills b from addr, or fails: there is no short read.
	readAt(b []byte, addr uint64) error
}

// processMemory reads a live process. The process keeps running meanwhile.
type processMemory int // pid

func (pid processMemory) readAt(b []byte, addr uint64) error {
	for len(b) > 0 {
		if addr > math.MaxInt64 {
			return fmt.Errorf("read %d bytes at %#x of process %d: %w", len(b), addr, int(pid), unix.EFAULT)
		}
		local := []unix.Iovec{{Base: &b[0]}}
		local[0].SetLen(len(b))
		remote := []unix.RemoteIovec{{Base: uintptr(addr), Len: len(b)}}
		n, err := unix.ProcessVMReadv(int(pid), local, remote, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ESRCH):
			return fmt.Errorf("read memory of process %d: %w", int(pid), ErrNoProcess)
		case errors.Is(err, unix.EPERM):
			return fmt.Errorf("read memory of process %d: %w", int(pid), ErrPermission)
		case err != nil:
			return fmt.Errorf("read %d bytes at %#x of process %d: %w", len(b), addr, int(pid), err)
		case n <= 0:
			return fmt.Errorf("read %d bytes at %#x of process %d: %w", len(b), addr, int(pid), unix.EFAULT)
		}
		b = b[n:]
		addr += uint64(n)
	}
	return nil
}

const (
	pageSize = 4096
	// One answer reads at most this much: the names of 15,000 modules, each on a page of its own.
	readBudget = 64 << 20
	// What a read costs at least: from the cache the time of some hundred instructions, past it
	// that of a system call. So garbage that points at itself runs out of budget within a quarter of
	// a second.
	cachedCost, liveCost = 256, 2048
)

// pageCache reads whole pages once. One answer uses one cache: the thousands of short
// strings that keys are lie on few pages, and a system call each would be dear.
type pageCache struct {
	under memory
	pages map[uint64]*[pageSize]byte
	spent int
}

func newPageCache(under memory) *pageCache {
	return &pageCache{under: under, pages: make(map[uint64]*[pageSize]byte)}
}

func (c *pageCache) spend(n int) error {
	if c.spent += n; c.spent > readBudget {
		return fmt.Errorf("%w: one answer would need more than %d MiB", ErrCorrupt, readBudget>>20)
	}
	return nil
}

func (c *pageCache) readAt(b []byte, addr uint64) error {
	if len(b) > 4*pageSize {
		if err := c.spend(max(len(b), liveCost)); err != nil {
			return err
		}
		return c.under.readAt(b, addr)
	}
	if err := c.spend(max(len(b), cachedCost)); err != nil {
		return err
	}
	for len(b) > 0 {
		base := addr &^ (pageSize - 1)
		page := c.pages[base]
		if page == nil {
			if err := c.spend(pageSize); err != nil {
				return err
			}
			page = new([pageSize]byte)
			if err := c.under.readAt(page[:], base); err != nil {
				return err
			}
			c.pages[base] = page
		}
		n := copy(b, page[addr-base:])
		b = b[n:]
		if addr += uint64(n); addr == 0 && len(b) > 0 {
			return fmt.Errorf("%w: read beyond the end of the address space", ErrCorrupt)
		}
	}
	return nil
}

func readWord(m memory, addr uint64) (uint64, error) {
	var b [8]byte
	if err := m.readAt(b[:], addr); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

// maxText bounds every string that is read: names, paths, targets.
const maxText = 64 << 10

// readCString reads NUL-terminated text of at most maxText bytes.
func readCString(m memory, addr uint64) (string, error) {
	var text []byte
	for len(text) < maxText {
		// Never across a page boundary: the next page may not be mapped.
		chunk := make([]byte, min(256, pageSize-int(addr%pageSize)))
		if err := m.readAt(chunk, addr); err != nil {
			return "", err
		}
		for i, c := range chunk {
			if c == 0 {
				return string(append(text, chunk[:i]...)), nil
			}
		}
		text = append(text, chunk...)
		addr += uint64(len(chunk))
	}
	return "", fmt.Errorf("%w: text without an end in %d bytes", ErrCorrupt, maxText)
}

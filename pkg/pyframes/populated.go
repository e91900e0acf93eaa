package pyframes

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A span is a range of addresses.
type span struct{ start, end uint64 }

// populated calls f with the parts of a mapping that have memory, in the order of addresses. A
// mapping may be of a terabyte of which three pages were ever touched.
func populated(pid int, mapping span, f func(span) error) error {
	file, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if errors.Is(err, fs.ErrPermission) { // it is its owner's alone, and CAP_SYS_PTRACE does not change that
		return fmt.Errorf("read the page map: %w and, for another user's process, CAP_DAC_READ_SEARCH", ErrPermission)
	}
	if err != nil {
		return fmt.Errorf("read the page map: %w", procError(err))
	}
	defer file.Close()
	err = scanPages(file, mapping, f)
	if errors.Is(err, unix.ENOTTY) {
		err = readPages(file, mapping, f)
	}
	return err
}

// struct pm_scan_arg, struct page_region and the categories of pages, include/uapi/linux/fs.h.
type pageScan struct {
	size, flags, start, end, walkEnd, vec, vecLen, maxPages uint64
	inverted, mask, anyOf, result                           uint64
}

type pageRegion struct{ start, end, categories uint64 }

const (
	pagemapScan = 0xc0606610 // _IOWR('f', 16, struct pm_scan_arg)

	pageIsPresent = 1 << 3
	pageIsSwapped = 1 << 4
	pageIsZero    = 1 << 5 // the zero page: read and never written
)

// scanPages asks the kernel, 6.7 or newer, which skips what no page table covers. On an older one it fails
// with ENOTTY.
func scanPages(pagemap *os.File, mapping span, f func(span) error) error {
	regions := make([]pageRegion, 512)
	var pinned runtime.Pinner // the kernel is told its address, and Go moves what is on a stack
	pinned.Pin(&regions[0])
	defer pinned.Unpin()
	for at := mapping.start; at < mapping.end; {
		arg := pageScan{
			size: uint64(unsafe.Sizeof(pageScan{})), start: at, end: mapping.end,
			vec: uint64(uintptr(unsafe.Pointer(&regions[0]))), vecLen: uint64(len(regions)),
			inverted: pageIsZero, mask: pageIsZero, anyOf: pageIsPresent | pageIsSwapped, result: pageIsPresent | pageIsSwapped,
		}
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, pagemap.Fd(), pagemapScan, uintptr(unsafe.Pointer(&arg)))
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.ESRCH:
			return ErrNoProcess
		case errno != 0:
			return errno
		}
		for _, r := range regions[:min(int(n), len(regions))] {
			if err := f(span{r.start, r.end}); err != nil {
				return err
			}
		}
		if arg.walkEnd <= at {
			return fmt.Errorf("%w: the kernel's page scan does not get past %#x", ErrCorrupt, at)
		}
		at = arg.walkEnd
	}
	return nil
}

// readPages reads one word of /proc/PID/pagemap for each page (Documentation/admin-guide/mm/pagemap.rst).
func readPages(pagemap *os.File, mapping span, f func(span) error) error {
	const swapped, present = 1 << 62, 1 << 63
	if _, err := pagemap.Seek(int64(mapping.start/pageSize*8), io.SeekStart); err != nil {
		return fmt.Errorf("read the page map: %w", err)
	}
	r := bufio.NewReaderSize(pagemap, 512<<10)
	var run span
	for at := mapping.start; at < mapping.end; at += pageSize {
		var entry [8]byte
		if _, err := io.ReadFull(r, entry[:]); errors.Is(err, io.EOF) {
			return ErrNoProcess // a page map without contents is one of a process that has exited
		} else if err != nil {
			return fmt.Errorf("read the page map: %w", procError(err))
		}
		there := binary.LittleEndian.Uint64(entry[:])&(swapped|present) != 0
		switch {
		case there && run.end == at:
			run.end += pageSize
		case there:
			if run.end != 0 {
				if err := f(run); err != nil {
					return err
				}
			}
			run = span{at, at + pageSize}
		}
	}
	if run.end != 0 {
		return f(run)
	}
	return nil
}

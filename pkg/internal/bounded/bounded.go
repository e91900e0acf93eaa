// Package bounded reads the files of other people's processes, which may be made to harm who reads them:
// tables and sections that lie on top of each other, are as long as a sparse file, or decompress to more
// than there is memory.
package bounded

import (
	"debug/elf"
	"fmt"
	"io"
)

// Reader is a file of which no more than limit bytes can be read, however often. Reading on is an error.
func Reader(file io.ReaderAt, limit int64) io.ReaderAt { return &reader{file, limit, limit} }

type reader struct {
	file        io.ReaderAt
	limit, left int64
}

func (r *reader) ReadAt(p []byte, off int64) (int, error) {
	if r.left -= int64(len(p)); r.left < 0 {
		return 0, fmt.Errorf("more than the limit of %d MiB would have to be read", r.limit>>20)
	}
	return r.file.ReadAt(p, off)
}

// maxELF bounds what is read of an ELF file. Of CPython's builds some 60 MB are read at most.
const maxELF = 256 << 20

// ELF is [elf.NewFile] of a Reader. A file with compressed sections is refused, unless they are debug
// information, which nobody here reads.
func ELF(file io.ReaderAt) (*elf.File, error) {
	f, err := elf.NewFile(Reader(file, maxELF))
	if err != nil {
		return nil, err
	}
	for _, s := range f.Sections {
		if s.Flags&elf.SHF_COMPRESSED != 0 && (s.Type != elf.SHT_PROGBITS || s.Flags&elf.SHF_ALLOC != 0) {
			return nil, fmt.Errorf("section %q is compressed", s.Name)
		}
	}
	return f, nil
}

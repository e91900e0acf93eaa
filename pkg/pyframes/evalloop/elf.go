package evalloop

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"

	"sca-probe/pkg/internal/bounded"
)

// An image is an interpreter binary on disk, addressed as its program headers lay it out.
type image struct {
	file     *elf.File
	code     []span // executable sections
	data     []span // other sections that are loaded, with relative relocations applied
	segments []*elf.Prog
	handlers []uint64 // where the opcodes' handlers begin, in order, once they are found
	swept    map[uint64]sweep
}

// A span is a section's bytes at their virtual address.
type span struct {
	name  string
	addr  uint64
	bytes []byte
}

func (s span) contains(addr uint64) bool { return addr >= s.addr && addr-s.addr < uint64(len(s.bytes)) }

// readImage reads the file that messages call path.
func readImage(r io.ReaderAt, path string) (*image, error) {
	file, err := bounded.ELF(r)
	if err != nil {
		return nil, fmt.Errorf("%w: reading %s: %w", ErrUnknownBuild, path, err)
	}
	img := &image{file: file}
	if err := img.load(); err != nil {
		return nil, fmt.Errorf("%w: reading %s: %w", ErrUnknownBuild, path, err)
	}
	return img, nil
}

func (img *image) load() error {
	if img.file.Machine != elf.EM_X86_64 || img.file.Class != elf.ELFCLASS64 {
		return fmt.Errorf("built for %s; x86-64 is supported", img.file.Machine)
	}
	for _, prog := range img.file.Progs {
		if prog.Type == elf.PT_LOAD {
			img.segments = append(img.segments, prog)
		}
	}
	for _, section := range img.file.Sections {
		if section.Flags&elf.SHF_ALLOC == 0 || section.Type == elf.SHT_NOBITS || section.Size == 0 {
			continue
		}
		bytes, err := section.Data()
		if err != nil {
			return fmt.Errorf("section %s: %w", section.Name, err)
		}
		s := span{section.Name, section.Addr, bytes}
		if section.Flags&elf.SHF_EXECINSTR != 0 {
			img.code = append(img.code, s)
		} else {
			img.data = append(img.data, s)
		}
	}
	return img.relocate()
}

// relocate applies R_X86_64_RELATIVE, which is all that a table of code addresses needs.
func (img *image) relocate() error {
	for _, section := range img.file.Sections {
		if section.Type != elf.SHT_RELA || section.Flags&elf.SHF_ALLOC == 0 {
			continue
		}
		relocations, err := section.Data()
		if err != nil {
			return fmt.Errorf("section %s: %w", section.Name, err)
		}
		for ; len(relocations) >= 24; relocations = relocations[24:] {
			if elf.R_X86_64(binary.LittleEndian.Uint64(relocations[8:])&0xffffffff) != elf.R_X86_64_RELATIVE {
				continue
			}
			offset := binary.LittleEndian.Uint64(relocations)
			for _, s := range img.data {
				if s.contains(offset) && offset-s.addr+8 <= uint64(len(s.bytes)) {
					copy(s.bytes[offset-s.addr:], relocations[16:24])
				}
			}
		}
	}
	return nil
}

// at returns the code from an address to its section's end, or nil.
func (img *image) at(addr uint64) []byte {
	for _, s := range img.code {
		if s.contains(addr) {
			return s.bytes[addr-s.addr:]
		}
	}
	return nil
}

// fileOffset converts a virtual address of code to what a uprobe is attached by. Processes map segments,
// and the code was read from sections: where they differ there is no offset.
func (img *image) fileOffset(addr uint64) (uint64, bool) {
	code := img.at(addr)
	mapped := make([]byte, min(len(code), longestInstruction))
	for _, prog := range img.segments {
		if addr < prog.Vaddr || addr-prog.Vaddr >= prog.Filesz || prog.Flags&elf.PF_X == 0 {
			continue
		}
		_, err := prog.ReadAt(mapped, int64(addr-prog.Vaddr))
		return addr - prog.Vaddr + prog.Off, err == nil && bytes.HasPrefix(code, mapped)
	}
	return 0, false
}

package bounded

import (
	"bytes"
	"compress/zlib"
	"debug/elf"
	"encoding/binary"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// endless is a file of any length, all zeros behind its head.
type endless struct{ head []byte }

func (e endless) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(e.head)) {
		copy(p, e.head[off:])
	}
	return len(p), nil
}

// file lays out an ELF file: its header, the sections' headers, and what follows.
func file(sections []elf.Section64, rest []byte) []byte {
	var b bytes.Buffer
	const headerSize, sectionSize = 64, 64
	header := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_DYN), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Shoff: headerSize, Ehsize: headerSize, Shentsize: sectionSize, Shnum: uint16(len(sections)),
	}
	for _, part := range []any{header, sections} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			panic(err)
		}
	}
	return append(b.Bytes(), rest...)
}

func TestELFReadsNoMoreThanItMay(t *testing.T) {
	null := elf.Section64{Type: uint32(elf.SHT_NULL)}
	t.Run("a table of sections as long as a sparse file", func(t *testing.T) {
		head := file([]elf.Section64{{Size: math.MaxInt32}}, nil)
		binary.LittleEndian.PutUint16(head[60:], 0) // the first section says how many there are
		if _, err := ELF(endless{head}); err == nil || !strings.Contains(err.Error(), "would have to be read") {
			t.Errorf("%v", err)
		}
	})
	t.Run("symbols as long as a sparse file", func(t *testing.T) {
		f, err := ELF(endless{file([]elf.Section64{null, {Type: uint32(elf.SHT_DYNSYM), Size: 1 << 40, Entsize: 24}}, nil)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.DynamicSymbols(); err == nil || !strings.Contains(err.Error(), "would have to be read") {
			t.Errorf("%v", err)
		}
	})
	t.Run("sections on top of each other", func(t *testing.T) {
		sections := []elf.Section64{null}
		for range 1000 {
			sections = append(sections, elf.Section64{Type: uint32(elf.SHT_PROGBITS), Size: 16 << 20})
		}
		f, err := ELF(endless{file(sections, nil)})
		if err != nil {
			t.Fatal(err)
		}
		read := 0
		for _, s := range f.Sections[1:] {
			if _, err = s.Data(); err != nil {
				break
			}
			read += 16 << 20
		}
		if err == nil || read > maxELF {
			t.Errorf("%d MiB were read, %v", read>>20, err)
		}
	})
	t.Run("symbols that decompress to more than there is memory", func(t *testing.T) {
		var bomb bytes.Buffer
		must(t, binary.Write(&bomb, binary.LittleEndian, elf.Chdr64{Type: uint32(elf.COMPRESS_ZLIB), Size: 1 << 40}))
		z := zlib.NewWriter(&bomb)
		_, err := z.Write(make([]byte, 1<<20))
		must(t, err)
		must(t, z.Close())
		sections := []elf.Section64{null, {Type: uint32(elf.SHT_DYNSYM), Flags: uint64(elf.SHF_COMPRESSED), Off: 64 + 2*64, Size: uint64(bomb.Len()), Entsize: 24}}
		if _, err := ELF(bytes.NewReader(file(sections, bomb.Bytes()))); err == nil || !strings.Contains(err.Error(), "compressed") {
			t.Errorf("%v", err)
		}
	})
	t.Run("a program", func(t *testing.T) {
		self, err := os.Open(filepath.Join("/proc/self/exe"))
		must(t, err)
		defer self.Close()
		f, err := ELF(self)
		must(t, err)
		_, err = io.Copy(io.Discard, f.Section(".text").Open())
		must(t, err)
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

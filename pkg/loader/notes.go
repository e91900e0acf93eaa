package loader

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"sca-probe/pkg/internal/bounded"
)

// ErrNoProbes says that a file has no static probes of the engine, or none that can be used.
var ErrNoProbes = errors.New("no usable static probes")

// A note is one location of a static probe: a systemtap-sdt note (Linux tools know it as USDT).
type note struct {
	name      string
	probe     probe
	arguments []argument
}

// An argument says where a probe's argument is when it fires.
type argument struct {
	form  uint8 // constant, inRegister or inMemory
	reg   uint8
	value int64 // the constant, or the displacement
}

// The forms of an argument, as bpf/usdt.bpf.c numbers them.
const (
	constant uint8 = iota
	inRegister
	inMemory
)

const (
	noteSection = ".note.stapsdt"
	baseSection = ".stapsdt.base"
	noteType    = 3
	provider    = "sca"
)

// readNotes reads the engine's static probes from its file.
func readNotes(path string) ([]note, error) {
	opened, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w in %s: %w", ErrNoProbes, path, err)
	}
	defer opened.Close()
	file, err := bounded.ELF(opened)
	if err != nil {
		return nil, fmt.Errorf("%w in %s: %w", ErrNoProbes, path, err)
	}
	section := file.Section(noteSection)
	if section == nil {
		return nil, fmt.Errorf("%w in %s: no section %s", ErrNoProbes, path, noteSection)
	}
	data, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("%w in %s: %w", ErrNoProbes, path, err)
	}
	var base uint64
	if s := file.Section(baseSection); s != nil {
		base = s.Addr
	}
	var notes []note
	for len(data) > 0 {
		description, rest, kind, owner, err := nextNote(data)
		if err != nil {
			return nil, fmt.Errorf("%w in %s: %w", ErrNoProbes, path, err)
		}
		data = rest
		if kind != noteType || owner != "stapsdt" {
			continue
		}
		n, ours, err := parseNote(file, description, base)
		if err != nil {
			return nil, fmt.Errorf("%w in %s: %w", ErrNoProbes, path, err)
		}
		if ours {
			notes = append(notes, n)
		}
	}
	if len(notes) == 0 {
		return nil, fmt.Errorf("%w in %s: none of provider %s", ErrNoProbes, path, provider)
	}
	return notes, nil
}

// nextNote splits one ELF note off.
func nextNote(data []byte) (description, rest []byte, kind uint32, owner string, err error) {
	if len(data) < 12 {
		return nil, nil, 0, "", errors.New("a note that ends early")
	}
	ownerSize, descriptionSize := uint64(binary.LittleEndian.Uint32(data)), uint64(binary.LittleEndian.Uint32(data[4:]))
	kind = binary.LittleEndian.Uint32(data[8:])
	from := 12 + align4(ownerSize)
	end := from + align4(descriptionSize)
	if end > uint64(len(data)) {
		return nil, nil, 0, "", errors.New("a note that ends early")
	}
	owner = string(bytes.TrimRight(data[12:12+ownerSize], "\x00"))
	return data[from : from+descriptionSize], data[end:], kind, owner, nil
}

func align4(n uint64) uint64 { return (n + 3) &^ 3 }

// parseNote parses a description: location, base and semaphore, then provider, name and arguments.
func parseNote(file *elf.File, description []byte, base uint64) (n note, ours bool, err error) {
	if len(description) < 24 {
		return note{}, false, errors.New("a probe's note that ends early")
	}
	location, linkBase, semaphore := binary.LittleEndian.Uint64(description),
		binary.LittleEndian.Uint64(description[8:]), binary.LittleEndian.Uint64(description[16:])
	texts := strings.SplitN(string(description[24:]), "\x00", 4)
	if len(texts) < 3 {
		return note{}, false, errors.New("a probe's note without its names")
	}
	if texts[0] != provider {
		return note{}, false, nil
	}
	n.name = texts[1]
	if base != 0 { // what moved the section moved the location too
		location += base - linkBase
		if semaphore != 0 {
			semaphore += base - linkBase
		}
	}
	if n.probe.offset, err = fileOffset(file, location); err != nil {
		return note{}, false, fmt.Errorf("probe %s: %w", n.name, err)
	}
	if semaphore != 0 {
		if n.probe.semaphore, err = fileOffset(file, semaphore); err != nil {
			return note{}, false, fmt.Errorf("semaphore of probe %s: %w", n.name, err)
		}
	}
	for _, text := range strings.Fields(texts[2]) {
		arg, err := parseArgument(text)
		if err != nil {
			return note{}, false, fmt.Errorf("probe %s: %w", n.name, err)
		}
		n.arguments = append(n.arguments, arg)
	}
	return n, true, nil
}

func fileOffset(file *elf.File, addr uint64) (uint64, error) {
	for _, prog := range file.Progs {
		if prog.Type == elf.PT_LOAD && addr >= prog.Vaddr && addr-prog.Vaddr < prog.Filesz {
			return addr - prog.Vaddr + prog.Off, nil
		}
	}
	return 0, fmt.Errorf("address %#x is not in the file", addr)
}

// registers are the 64-bit registers by number.
var registers = map[string]uint8{
	"rax": 0, "rcx": 1, "rdx": 2, "rbx": 3, "rsp": 4, "rbp": 5, "rsi": 6, "rdi": 7,
	"r8": 8, "r9": 9, "r10": 10, "r11": 11, "r12": 12, "r13": 13, "r14": 14, "r15": 15,
}

// argumentForm is SIZE@OPERAND, with the operand a constant ($5), a register (%rdi) or memory (40(%rdi)).
var argumentForm = regexp.MustCompile(`^-?8@(?:\$(-?\d+)|%(\w+)|(-?\d*)\(%(\w+)\))$`)

func parseArgument(text string) (argument, error) {
	parts := argumentForm.FindStringSubmatch(text)
	if parts == nil {
		return argument{}, fmt.Errorf("argument %q is of an unknown form", text)
	}
	var arg argument
	var name string
	number := parts[1]
	switch {
	case parts[2] != "":
		arg.form, name = inRegister, parts[2]
	case parts[4] != "":
		arg.form, name, number = inMemory, parts[4], parts[3]
	}
	if name != "" {
		reg, known := registers[name]
		if !known {
			return argument{}, fmt.Errorf("argument %q: unknown register", text)
		}
		arg.reg = reg
	}
	if number != "" {
		value, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return argument{}, fmt.Errorf("argument %q: %w", text, err)
		}
		arg.value = value
	}
	return arg, nil
}

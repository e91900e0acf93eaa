package pyframes

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/arch/x86/x86asm"

	"sca-probe/pkg/internal/bounded"
)

// Version is a release of CPython.
type Version struct{ Major, Minor, Micro int }

// String returns "3.13.1".
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// An Interpreter is a CPython build on disk: the ELF file that holds the eval loop,
// which is the python executable or libpython.
type Interpreter struct {
	// Path of the file that holds _PyEval_EvalFrameDefault. Of a Process it is the path
	// as the process has it mapped, in the process's mount namespace.
	Path         string
	BuildID      string // GNU build ID in hexadecimal, "" when the build has none
	Version      Version
	Linkage      string // "static": in the executable; "shared": in libpython
	Stripped     bool   // no .symtab; .dynsym is always there
	FreeThreaded bool   // built without the global interpreter lock
	Debug        bool   // built with Py_DEBUG

	level   byte // of the release: 0xa alpha, 0xb beta, 0xc candidate, 0xf final
	machine elf.Machine
	symbols map[string]uint64 // link-time addresses of the names in wanted
	loads   []elf.ProgHeader  // PT_LOAD
	exec    bool              // ET_EXEC: mapped where it was linked
	byID    bool              // read from another file, which has the same build ID
}

// wanted are the exported names that this package starts from. Extensions need them,
// so .dynsym has them even in stripped and static builds.
var wanted = map[string]bool{
	"_PyEval_EvalFrameDefault": true, "PyType_Type": true, "PyDict_Type": true, "PyUnicode_Type": true, "PyTuple_Type": true,
	"PyModule_Type": true, "PyFunction_Type": true, "PyCode_Type": true, "PyCFunction_Type": true,
	"PyMethod_Type": true, "PyStaticMethod_Type": true, "PyClassMethod_Type": true, "PyProperty_Type": true,
	"PyFrame_Type": true, "PyMemberDescr_Type": true, "PyLong_Type": true, "PyBytes_Type": true,
}

// wantedSince are those that only newer versions have, by the minor version that brought them.
var wantedSince = map[string]int{"_PyRuntime": 7, "Py_Version": 11}

// listHead names, among an interpreter's symbols, where the list of interpreter states begins:
// _PyRuntime, or in 3.6 the static variable interp_head.
func (v Version) listHead() string {
	if v.Minor < wantedSince["_PyRuntime"] {
		return interpHead
	}
	return "_PyRuntime"
}

const (
	interpHead     = "interp_head"
	interpHeadFrom = "PyInterpreterState_Head"
)

// debugSymbols are exported by Py_REF_DEBUG builds, which Py_DEBUG implies, and by no
// other (Include/object.h and Include/refcount.h, CPython 3.6 to 3.15).
var debugSymbols = map[string]bool{"_Py_NegativeRefcount": true, "_Py_RefTotal": true, "_Py_INCREF_IncRefTotal": true}

// OpenInterpreter reads the build at path: a python executable or libpython. For an
// executable that is linked to libpython it is libpython that is read.
//
// For CPython that is not supported it returns what could be found out together with
// an error that is [ErrUnsupportedBuild]; for any other file, [ErrNotPython].
func OpenInterpreter(path string) (*Interpreter, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open interpreter: %w", err)
	}
	defer f.Close()
	in, err := readInterpreter(f, path)
	if !errors.Is(err, ErrNotPython) {
		return in, err
	}
	library, libErr := linkedLibrary(f, path)
	if libErr != nil {
		return nil, libErr
	}
	if library == "" {
		return nil, err
	}
	lib, libErr := os.Open(library)
	if libErr != nil {
		return nil, fmt.Errorf("open libpython of %s: %w", path, libErr)
	}
	defer lib.Close()
	return readInterpreter(lib, library)
}

var pythonName = regexp.MustCompile(`python([23])\.([0-9]{1,2})`)

// readInterpreter reads the build in the ELF file r, which messages call path.
func readInterpreter(r io.ReaderAt, path string) (*Interpreter, error) {
	f, err := bounded.ELF(r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", path, ErrNotPython, err)
	}
	defer f.Close()
	names, err := exportedOrAll(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", path, ErrNotPython, err)
	}
	in := &Interpreter{
		Path:     path,
		Linkage:  "static",
		Stripped: f.Section(".symtab") == nil,
		BuildID:  buildID(f),
		machine:  f.Machine,
		symbols:  make(map[string]uint64),
		loads:    loadSegments(f),
		exec:     f.Type == elf.ET_EXEC,
	}
	for _, s := range names {
		if s.Section == elf.SHN_UNDEF {
			continue
		}
		if wanted[s.Name] || wantedSince[s.Name] != 0 || s.Name == interpHeadFrom {
			in.symbols[s.Name] = s.Value
		}
		in.Debug = in.Debug || debugSymbols[s.Name]
	}
	if in.symbols["PyType_Type"] == 0 || in.symbols["_PyEval_EvalFrameDefault"] == 0 {
		return nil, fmt.Errorf("%s: %w", path, ErrNotPython)
	}
	soname := ""
	if names, err := f.DynString(elf.DT_SONAME); err == nil && len(names) > 0 {
		in.Linkage, soname = "shared", names[0]
	}
	in.readVersion(f, soname)
	if in.Version.Major == 3 && in.Version.Minor == 6 {
		if addr, ok := readInterpHead(f, in.symbols[interpHeadFrom]); ok {
			in.symbols[interpHead] = addr
		}
	}
	if addr := in.symbols["_PyRuntime"]; addr != 0 && in.Version.Minor >= 13 {
		// struct _Py_DebugOffsets, Include/internal/pycore_runtime.h (3.13) and
		// pycore_debug_offsets.h (3.14): cookie, version, free_threaded.
		if head, err := readAddress(f, addr, 24); err == nil && string(head[:8]) == debugCookie {
			in.FreeThreaded = binary.LittleEndian.Uint64(head[16:]) != 0
		}
	}
	return in, in.supported()
}

// exportedOrAll returns the exported symbols, or all of a program that links CPython in and exports
// nothing of it.
func exportedOrAll(f *elf.File) ([]elf.Symbol, error) {
	dynamic, err := f.DynamicSymbols()
	if err == nil && slices.ContainsFunc(dynamic, func(s elf.Symbol) bool { return s.Name == "PyType_Type" }) {
		return dynamic, nil
	}
	all, allErr := f.Symbols()
	if allErr != nil {
		return dynamic, err
	}
	return append(dynamic, all...), nil
}

// readVersion takes the version from Py_Version, which 3.11 introduced, or for older
// builds from the text that Py_GetVersion begins with.
func (in *Interpreter) readVersion(f *elf.File, soname string) {
	if addr := in.symbols["Py_Version"]; addr != 0 {
		if raw, err := readAddress(f, addr, 4); err == nil {
			in.setVersion(binary.LittleEndian.Uint32(raw))
			return
		}
	}
	var named Version
	for _, name := range []string{soname, filepath.Base(in.Path)} {
		if m := pythonName.FindStringSubmatch(name); m != nil {
			named.Major, _ = strconv.Atoi(m[1])
			named.Minor, _ = strconv.Atoi(m[2])
			break
		}
	}
	if !in.readVersionText(f, named) {
		in.Version = named // good enough to refuse it by
	}
}

// versionText is PY_VERSION (Include/patchlevel.h), which the linker may have made the end of
// another text.
var versionText = regexp.MustCompile(`[^0-9.](3)\.([0-9]{1,2})\.([0-9]{1,2})((?:a|b|rc)[0-9]+)?\+?\x00`)

// maxReadOnly bounds the .rodata that is searched for the version. CPython's has under 4 MiB.
const maxReadOnly = 64 << 20

// readVersionText takes the version from the only text in .rodata that may be one of CPython
// before 3.11, and of the release that the file's name says, where it says one. A program that
// embeds CPython may hold other texts like it: then none is believed. Whoever opens a process
// compares sys.hexversion.
func (in *Interpreter) readVersionText(f *elf.File, named Version) bool {
	s := f.Section(".rodata")
	if s == nil || s.Size > maxReadOnly {
		return false
	}
	data, err := s.Data()
	if err != nil {
		return false
	}
	found := make(map[Version]byte)
	for _, m := range versionText.FindAllSubmatch(data, -1) {
		v := Version{Major: 3}
		v.Minor, _ = strconv.Atoi(string(m[2]))
		v.Micro, _ = strconv.Atoi(string(m[3]))
		if v.Minor >= wantedSince["Py_Version"] || named != (Version{}) && v.Minor != named.Minor {
			continue
		}
		found[v] = releaseFinal
		if len(m[4]) > 0 {
			found[v] = m[4][0] - 'a' + 0xa // alpha, beta; a candidate is no final release either
		}
	}
	if len(found) != 1 {
		return false
	}
	for v, level := range found {
		in.Version, in.level = v, level
	}
	return true
}

const releaseFinal = 0xf // PY_RELEASE_LEVEL_FINAL

// readInterpHead finds the static variable interp_head of CPython 3.6 from the one
// instruction that PyInterpreterState_Head is besides its return (Python/pystate.c).
func readInterpHead(f *elf.File, function uint64) (uint64, bool) {
	const longest = 15 // bytes of an instruction
	code, err := readAddress(f, function, 2*longest)
	if err != nil || f.Machine != elf.EM_X86_64 {
		return 0, false
	}
	load, err := x86asm.Decode(code, 64)
	if err != nil {
		return 0, false
	}
	ret, err := x86asm.Decode(code[load.Len:], 64)
	if err != nil || ret.Op != x86asm.RET || load.Op != x86asm.MOV || load.Args[0] != x86asm.RAX {
		return 0, false
	}
	from, ok := load.Args[1].(x86asm.Mem)
	if !ok || from.Base != x86asm.RIP || from.Index != 0 {
		return 0, false
	}
	return function + uint64(load.Len) + uint64(from.Disp), true
}

// setVersion decodes PY_VERSION_HEX: 0x030d01f0 is the final 3.13.1.
func (in *Interpreter) setVersion(hex uint32) {
	in.Version = Version{Major: int(hex >> 24), Minor: int(hex >> 16 & 0xff), Micro: int(hex >> 8 & 0xff)}
	in.level = byte(hex >> 4 & 0xf)
}

const supportedBuilds = "supported are final releases of 3.6 to 3.15 on x86-64, with the GIL and without Py_DEBUG"

func (in *Interpreter) supported() error {
	refuse := func(what string) error {
		return fmt.Errorf("%s is %s: %w: %s", in.Path, what, ErrUnsupportedBuild, supportedBuilds)
	}
	switch {
	case in.machine != elf.EM_X86_64:
		return refuse("CPython for " + in.machine.String())
	case in.Version == Version{}:
		return refuse("a CPython whose version cannot be told")
	case layouts[[2]int{in.Version.Major, in.Version.Minor}] == nil:
		return refuse("CPython " + in.Version.String())
	case in.level != releaseFinal:
		return refuse("a pre-release of CPython " + in.Version.String())
	case in.FreeThreaded:
		return refuse("the free-threaded build of CPython " + in.Version.String())
	case in.Debug:
		return refuse("a debug build of CPython " + in.Version.String())
	}
	for name := range wanted {
		if in.symbols[name] == 0 {
			return refuse("CPython " + in.Version.String() + " that does not export " + name)
		}
	}
	for name, since := range wantedSince {
		if in.symbols[name] == 0 && in.Version.Minor >= since {
			return refuse("CPython " + in.Version.String() + " that does not export " + name)
		}
	}
	if in.symbols[in.Version.listHead()] == 0 {
		return refuse("CPython " + in.Version.String() + " whose list of interpreters cannot be found")
	}
	return nil
}

// readAddress reads the file's initial contents of memory at a link-time address.
func readAddress(f *elf.File, addr uint64, n int) ([]byte, error) {
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD && addr >= p.Vaddr && addr-p.Vaddr <= p.Filesz && p.Filesz-(addr-p.Vaddr) >= uint64(n) {
			b := make([]byte, n)
			_, err := p.ReadAt(b, int64(addr-p.Vaddr))
			return b, err
		}
	}
	return nil, fmt.Errorf("%w: no file contents at %#x", ErrCorrupt, addr)
}

// eachNote calls f with the owner, type and descriptor of each note in a section.
func eachNote(s *elf.Section, order binary.ByteOrder, f func(owner string, kind uint32, desc []byte)) {
	if s == nil || s.Size > 1<<20 {
		return
	}
	data, err := s.Data()
	if err != nil {
		return
	}
	align := func(n uint32) uint64 { return (uint64(n) + 3) &^ 3 }
	for len(data) >= 12 {
		name, desc, kind := order.Uint32(data), order.Uint32(data[4:]), order.Uint32(data[8:])
		data = data[12:]
		if align(name)+align(desc) > uint64(len(data)) || name > uint32(len(data)) || desc > uint32(len(data)) {
			return
		}
		f(string(bytes.TrimRight(data[:name], "\x00")), kind, data[align(name):][:desc])
		data = data[align(name)+align(desc):]
	}
}

func buildID(f *elf.File) (id string) {
	const ntGNUBuildID = 3
	eachNote(f.Section(".note.gnu.build-id"), f.ByteOrder, func(owner string, kind uint32, desc []byte) {
		if owner == "GNU" && kind == ntGNUBuildID {
			id = hex.EncodeToString(desc)
		}
	})
	return id
}

// hasProbes reports whether an ELF file has static probes (SystemTap's note, type 3:
// location, base and semaphore, then provider, name and arguments, each with a NUL).
func hasProbes(r io.ReaderAt, provider string) bool {
	f, err := bounded.ELF(r)
	if err != nil {
		return false
	}
	defer f.Close()
	found := false
	eachNote(f.Section(".note.stapsdt"), f.ByteOrder, func(owner string, kind uint32, desc []byte) {
		if owner == "stapsdt" && kind == 3 && len(desc) > 24 {
			name, _, _ := bytes.Cut(desc[24:], []byte{0})
			found = found || string(name) == provider
		}
	})
	return found
}

// linkedLibrary finds the libpython that the executable at path is linked to, "" when
// it is linked to none. It looks where the file itself says and in the usual folders.
func linkedLibrary(r io.ReaderAt, path string) (string, error) {
	f, err := bounded.ELF(r)
	if err != nil {
		return "", fmt.Errorf("%s: %w: %w", path, ErrNotPython, err)
	}
	defer f.Close()
	needed, err := f.DynString(elf.DT_NEEDED)
	if err != nil {
		return "", nil
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", fmt.Errorf("open interpreter: %w", err)
	}
	origin := filepath.Dir(real)
	var folders []string
	for _, tag := range []elf.DynTag{elf.DT_RUNPATH, elf.DT_RPATH} {
		values, err := f.DynString(tag)
		if err != nil {
			continue
		}
		for _, v := range values {
			v = strings.NewReplacer("${ORIGIN}", origin, "$ORIGIN", origin).Replace(v)
			folders = append(folders, filepath.SplitList(v)...)
		}
	}
	folders = append(folders, filepath.Join(filepath.Dir(origin), "lib"), "/usr/local/lib",
		"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/usr/lib")
	for _, name := range needed {
		base := filepath.Base(name)
		if !strings.HasPrefix(base, "libpython") {
			continue
		}
		name = strings.NewReplacer("${ORIGIN}", origin, "$ORIGIN", origin).Replace(name)
		candidates := []string{name}
		if !strings.Contains(name, "/") {
			candidates = candidates[:0]
			for _, folder := range folders {
				candidates = append(candidates, filepath.Join(folder, base))
			}
		}
		for _, c := range candidates {
			if _, err := os.Stat(c); err == nil {
				return c, nil
			}
		}
		return "", fmt.Errorf("%s is linked to %s, which is in none of %v", path, name, folders)
	}
	return "", nil
}

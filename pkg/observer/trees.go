package observer

import (
	"archive/zip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"sca-probe/pkg/internal/bounded"
)

// A processRoot is a process's view of the file system. Nothing in it, no symbolic link either, leads
// out of it.
type processRoot struct {
	dir  *os.File
	left int64 // how much may still be read
}

func openRoot(pid int) (*processRoot, error) {
	dir, err := os.OpenFile(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the process's root folder: %w", err)
	}
	return &processRoot{dir, maxMetadata}, nil
}

func (r *processRoot) Close() error { return r.dir.Close() }

// open opens a path of the process. A pipe or device does not block.
func (r *processRoot) open(name string, flags uint64) (*os.File, error) {
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | flags, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(int(r.dir.Fd()), name, &how)
	if errors.Is(err, unix.ENOSYS) {
		return nil, fmt.Errorf("opening %s in the process's root folder needs Linux 5.6: %w", name, err)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// maxEntries bounds the entries of a folder that are looked at.
const maxEntries = 1 << 16

func (r *processRoot) readDir(name string) ([]fs.DirEntry, error) {
	dir, err := r.open(name, unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	entries, err := dir.ReadDir(maxEntries)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, err
}

// maxFile bounds the metadata of a distribution, of which the RECORD of a large one has 2 MB, and
// maxMetadata that of all.
const (
	maxFile     = 32 << 20
	maxMetadata = 512 << 20
)

// readFile reads a regular file.
func (r *processRoot) readFile(name string) ([]byte, error) {
	file, err := r.open(name, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", name)
	}
	return r.readAll(file, name, info.Size())
}

// readAll reads what should have size bytes.
func (r *processRoot) readAll(file io.Reader, name string, size int64) ([]byte, error) {
	if size > maxFile {
		return nil, fmt.Errorf("%s has %d bytes, more than the limit of %d", name, size, maxFile)
	}
	if r.left -= size; r.left < 0 {
		return nil, fmt.Errorf("what is installed has more than %d MiB of metadata", maxMetadata>>20)
	}
	return io.ReadAll(io.LimitReader(file, size))
}

// An archive is a zip file in a process's root. What is in it has the archive's path in front.
type archive struct {
	root  *processRoot
	file  *os.File
	path  string
	files map[string]*zip.File
}

// maxDirectory bounds what is read of an archive, in bytes: of its directory and of metadata.
const maxDirectory = 64 << 20

func (r *processRoot) openArchive(path string) (*archive, error) {
	file, err := r.open(path, 0)
	if err != nil {
		return nil, err
	}
	a := &archive{root: r, file: file, path: path, files: map[string]*zip.File{}}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is neither a folder nor a file")
	}
	var content *zip.Reader
	if err == nil {
		content, err = zip.NewReader(bounded.Reader(file, maxDirectory), info.Size())
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	for _, f := range content.File {
		a.files[f.Name] = f
	}
	return a, nil
}

func (a *archive) Close() error { return a.file.Close() }

// top returns the names of what is not within a folder of the archive.
func (a *archive) top() []string {
	seen := map[string]bool{}
	for name := range a.files {
		name, _, _ = strings.Cut(name, "/")
		seen[name] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

func (a *archive) readFile(name string) ([]byte, error) {
	f := a.files[strings.TrimPrefix(name, a.path+"/")]
	if f == nil || f.Mode().IsDir() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	content, err := f.Open()
	if err != nil {
		return nil, err
	}
	defer content.Close()
	return a.root.readAll(content, name, int64(min(f.UncompressedSize64, maxFile+1)))
}

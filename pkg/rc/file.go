package rc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

const (
	// recheck is how often the file is looked at without being told to: for what inotify does not
	// report (a network file system, a folder that does not exist yet, a link's target rewritten).
	recheck = time.Second
	// settle is how long after an event the file is looked at: a write in place comes as several
	// events, and a busy folder must not make this process busy.
	settle = 10 * time.Millisecond
	// racy is how long a file must have been left alone before its times are trusted to tell it
	// from a changed one: times advance in steps, of 4 ms in ext4 on most kernels, of up to 2 s
	// in other file systems.
	racy = 2 * time.Second
)

// A FileSource follows payloads in files: one file, or those in a directory whose names end in
// ".json" and do not begin with a dot, each of which is a configuration ([Push] says how they are
// merged). Renames over them and symbolic links that are swapped (a mounted ConfigMap) are changes
// like any other. A missing file is a withdrawn configuration, a missing directory has none. A
// file that cannot be read is like a malformed one: what it asked for before stays. Each error is
// told once. A write that leaves the set as it was yields nothing.
type FileSource struct {
	path string
}

// NewFileSource returns a source that follows the file or directory at path, which need not exist
// yet.
func NewFileSource(path string) *FileSource { return &FileSource{path: path} }

// Watch implements [Source].
func (s *FileSource) Watch(ctx context.Context) <-chan Update {
	updates := make(chan Update)
	go func() {
		defer close(updates)
		push := NewPush()
		var delivery sync.WaitGroup
		delivery.Go(func() { push.deliver(ctx, updates) })
		s.follow(ctx, push)
		delivery.Wait()
	}()
	return updates
}

func (s *FileSource) follow(ctx context.Context, push *Push) {
	folder := watchFolder()
	defer folder.close()
	ticker := time.NewTicker(recheck)
	defer ticker.Stop()

	files := map[string]*fileState{}
	for {
		// Watched before it is read: a change in between is then an event.
		folder.renew(s.folder())
		if names, err := s.list(); err != nil {
			push.Fail(err)
		} else {
			_ = push.Push(scan(files, names)...) // list keeps to the only limit that it has
		}
		if !folder.wait(ctx, ticker.C) {
			return
		}
	}
}

// folder returns the directory in which changes to the files show.
func (s *FileSource) folder() string {
	if info, err := os.Stat(s.path); err == nil && info.IsDir() {
		return s.path
	}
	return filepath.Dir(s.path)
}

// list returns the files that may be there.
func (s *FileSource) list() ([]string, error) {
	entries, err := os.ReadDir(s.path)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, fs.ErrNotExist) {
		return []string{s.path}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading Remote Configuration: %w", err)
	}
	var names []string
	for _, entry := range entries {
		if name := entry.Name(); strings.HasSuffix(name, ".json") && !strings.HasPrefix(name, ".") {
			names = append(names, filepath.Join(s.path, name))
		}
	}
	// Past the limit nothing is read at all: which of them would count?
	if len(names) > MaxConfigurations {
		return nil, fmt.Errorf("reading Remote Configuration: %s has %d payloads, the limit is %d", s.path, len(names), MaxConfigurations)
	}
	return names, nil
}

// scan looks at the files that may be there, and returns what has changed since the last scan.
func scan(files map[string]*fileState, names []string) []Change {
	var changes []Change
	for _, name := range names {
		if files[name] == nil {
			files[name] = &fileState{path: name}
		}
		content, err := files[name].load()
		switch {
		case errors.Is(err, errUnchanged):
		case errors.Is(err, fs.ErrNotExist):
			changes = append(changes, Change{Path: name})
		case err != nil:
			changes = append(changes, Change{Path: name, unreadable: fmt.Errorf("reading Remote Configuration: %w", withoutPath(err))})
		default:
			changes = append(changes, Change{Path: name, Payload: content})
		}
	}
	for name := range files {
		if !slices.Contains(names, name) {
			delete(files, name)
			changes = append(changes, Change{Path: name})
		}
	}
	return changes
}

// withoutPath returns an error without the path that a Push puts before each of them.
func withoutPath(err error) error {
	var named *fs.PathError
	if errors.As(err, &named) {
		return named.Err
	}
	return err
}

// fileState is what a file was when it was last read.
type fileState struct {
	path    string
	stamp   stamp
	settled bool // stamp tells this content from any later one
}

// A stamp changes whenever a file does, once its times are older than racy.
type stamp struct {
	device, inode uint64
	size          int64
	modified      unix.Timespec
	changed       unix.Timespec
}

var errUnchanged = errors.New("unchanged")

// load returns the file's content, never nil and cut off one byte past MaxPayload, which tells
// that it is too long. It fails with errUnchanged where the file's stamp answers for its content.
func (f *fileState) load() ([]byte, error) {
	settled := f.settled
	f.settled = false
	// Without O_NONBLOCK, opening a named pipe waits for a writer, for good.
	file, err := os.OpenFile(f.path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return nil, err
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, errors.New("not a regular file")
	}
	now := stamp{stat.Dev, stat.Ino, stat.Size, stat.Mtim, stat.Ctim}
	if settled && now == f.stamp {
		f.settled = true
		return nil, errUnchanged
	}
	quiet := time.Since(time.Unix(stat.Ctim.Unix())) > racy && time.Since(time.Unix(stat.Mtim.Unix())) > racy
	// bytes.MinRead: the room that the read wants which finds the end.
	content := bytes.NewBuffer(make([]byte, 0, min(stat.Size, MaxPayload+1)+bytes.MinRead))
	if _, err := content.ReadFrom(io.LimitReader(file, MaxPayload+1)); err != nil {
		return nil, err
	}
	f.stamp, f.settled = now, quiet
	return content.Bytes(), nil
}

// A folder is the watch on the directory that holds the files. The directory is watched, not the
// files: a rename over a file leaves its old inode behind, with the watch.
type folder struct {
	path    string
	watcher *fsnotify.Watcher     // nil when the user's inotify limit is reached: rechecks still follow
	events  <-chan fsnotify.Event // nil with watcher, and when the watcher ended
	errors  <-chan error          // likewise; an overflow is an event of unknown content
	watched os.FileInfo           // the directory that the watch is on
}

func watchFolder() *folder {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return &folder{}
	}
	return &folder{watcher: watcher, events: watcher.Events, errors: watcher.Errors}
}

func (f *folder) close() {
	if f.watcher != nil {
		_ = f.watcher.Close()
	}
}

// renew puts the watch on the directory that is at the path now: it may have appeared, or stand
// where another one was, and a watch stays with the inode that it was put on.
func (f *folder) renew(path string) {
	if f.watcher == nil {
		return
	}
	info, err := os.Stat(path)
	if err == nil && path == f.path && f.watched != nil && os.SameFile(info, f.watched) && len(f.watcher.WatchList()) > 0 {
		return
	}
	_ = f.watcher.Remove(f.path) // fails when there is no watch, which is what is wanted
	f.path, f.watched = path, nil
	if err == nil && f.watcher.Add(path) == nil {
		f.watched = info
	}
}

// wait returns true when it is time to look at the file again, false when ctx ended.
func (f *folder) wait(ctx context.Context, tick <-chan time.Time) bool {
	var settled <-chan time.Time
	for {
		open := true
		select {
		case <-ctx.Done():
			return false
		case <-tick:
			return true
		case <-settled:
			return true
		case _, open = <-f.events:
		case _, open = <-f.errors:
		}
		if !open {
			f.events, f.errors = nil, nil
		} else if settled == nil {
			settled = time.After(settle)
		}
	}
}

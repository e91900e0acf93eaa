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

// A FileSource follows a payload in a file. Renames over it and symbolic links that are swapped
// (a mounted ConfigMap) are changes like any other. A missing file is a withdrawn configuration:
// nothing is desired. A malformed one, or one that cannot be read, changes nothing: the last good
// set stays, and the error is reported once. A write that leaves the set as it was yields nothing.
type FileSource struct {
	path string
}

// NewFileSource returns a source that follows the file at path, which need not exist yet.
func NewFileSource(path string) *FileSource { return &FileSource{path: path} }

// Watch implements [Source].
func (s *FileSource) Watch(ctx context.Context) <-chan Update {
	updates := make(chan Update)
	go s.follow(ctx, updates)
	return updates
}

func (s *FileSource) follow(ctx context.Context, updates chan<- Update) {
	defer close(updates)
	folder := watchFolder(filepath.Dir(s.path))
	defer folder.close()
	ticker := time.NewTicker(recheck)
	defer ticker.Stop()

	state := fileState{path: s.path}
	for first := true; ; first = false {
		// Watched before it is read: a change in between is then an event.
		folder.renew()
		if changed := state.read(); changed || first {
			select {
			case updates <- Update{Set: state.set, Err: state.err}:
			case <-ctx.Done():
				return
			}
		}
		if !folder.wait(ctx, ticker.C) {
			return
		}
	}
}

// fileState is what a file was when it was last read.
type fileState struct {
	path    string
	stamp   stamp
	settled bool // stamp tells this content from any later one
	content []byte
	set     DesiredSet
	err     error
}

// A stamp changes whenever a file does, once its times are older than racy.
type stamp struct {
	device, inode uint64
	size          int64
	modified      unix.Timespec
	changed       unix.Timespec
}

// read looks at the file and reports whether the desired set or the error changed.
func (f *fileState) read() bool {
	content, err := f.load()
	switch {
	case errors.Is(err, errUnchanged):
		return false
	case errors.Is(err, fs.ErrNotExist):
		f.content = nil
		return f.accept(nil)
	case err != nil:
		f.content = nil
		return f.refuse(err)
	}
	if f.content != nil && bytes.Equal(content, f.content) {
		return false
	}
	f.content = content
	targets, err := ParsePayload(content)
	if err != nil {
		// A new content that fails the same way is another change.
		f.err = nil
		return f.refuse(fmt.Errorf("%s: %w", f.path, err))
	}
	return f.accept(targets)
}

// accept takes a good set and reports whether that changes anything.
func (f *fileState) accept(targets []Target) bool {
	recovered := f.err != nil
	f.err = nil
	if slices.Equal(targets, f.set.Targets) {
		return recovered
	}
	f.set = DesiredSet{Version: f.set.Version + 1, Targets: targets}
	return true
}

// refuse keeps the last good set and reports whether the error is news.
func (f *fileState) refuse(err error) bool {
	news := f.err == nil || f.err.Error() != err.Error()
	f.err = err
	return news
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
		return nil, fmt.Errorf("reading Remote Configuration: %w", err)
	}
	defer file.Close()
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return nil, fmt.Errorf("reading Remote Configuration: fstat %s: %w", f.path, err)
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("reading Remote Configuration: %s is not a regular file", f.path)
	}
	now := stamp{stat.Dev, stat.Ino, stat.Size, stat.Mtim, stat.Ctim}
	if settled && now == f.stamp {
		f.settled = true
		return nil, errUnchanged
	}
	quiet := time.Since(time.Unix(stat.Ctim.Unix())) > racy && time.Since(time.Unix(stat.Mtim.Unix())) > racy
	content, err := io.ReadAll(io.LimitReader(file, MaxPayload+1))
	if err != nil {
		return nil, fmt.Errorf("reading Remote Configuration: %w", err)
	}
	f.stamp, f.settled = now, quiet
	return content, nil
}

// A folder is the watch on the directory that holds the file. The directory is watched, not the
// file: a rename over the file leaves its old inode behind, with the watch.
type folder struct {
	path    string
	watcher *fsnotify.Watcher     // nil when the user's inotify limit is reached: rechecks still follow
	events  <-chan fsnotify.Event // nil with watcher, and when the watcher ended
	errors  <-chan error          // likewise; an overflow is an event of unknown content
	watched os.FileInfo           // the directory that the watch is on
}

func watchFolder(path string) *folder {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return &folder{path: path}
	}
	return &folder{path: path, watcher: watcher, events: watcher.Events, errors: watcher.Errors}
}

func (f *folder) close() {
	if f.watcher != nil {
		_ = f.watcher.Close()
	}
}

// renew puts the watch on the directory that is at the path now: it may have appeared, or stand
// where another one was, and a watch stays with the inode that it was put on.
func (f *folder) renew() {
	if f.watcher == nil {
		return
	}
	info, err := os.Stat(f.path)
	if err == nil && f.watched != nil && os.SameFile(info, f.watched) && len(f.watcher.WatchList()) > 0 {
		return
	}
	_ = f.watcher.Remove(f.path) // fails when there is no watch, which is what is wanted
	f.watched = nil
	if err == nil && f.watcher.Add(f.path) == nil {
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

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
	"time"

	"github.com/fsnotify/fsnotify"
)

// recheck is how often a file is read again without being told to: for what inotify does not
// report (a network file system, a folder that does not exist yet, a link further up the path).
const recheck = time.Second

// A FileSource follows a payload in a file. Renames over it and symbolic links that are swapped
// (a mounted ConfigMap) are changes like any other. A missing file is a withdrawn configuration:
// nothing is desired. A malformed one changes nothing: the last good set stays.
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
	// Without a watcher (the user's inotify limit is reached) the recheck alone still follows.
	var events <-chan fsnotify.Event
	watcher, err := fsnotify.NewWatcher()
	if err == nil {
		defer watcher.Close()
		events = watcher.Events
	}
	ticker := time.NewTicker(recheck)
	defer ticker.Stop()

	var state fileState
	watching := false
	for first := true; ; first = false {
		// The folder is watched, not the file: a rename over the file leaves its old inode behind.
		if watcher != nil && !watching {
			watching = watcher.Add(filepath.Dir(s.path)) == nil
		}
		if update, changed := state.read(s.path); changed || first {
			select {
			case updates <- update:
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case event := <-events:
			if event.Has(fsnotify.Remove) && event.Name == filepath.Dir(s.path) {
				watching = false // the folder itself went away
			}
		case <-ticker.C:
			watching = watching && len(watcher.WatchList()) > 0
		}
	}
}

// fileState is what was last read.
type fileState struct {
	known   bool // something was read before
	missing bool
	content []byte
	set     DesiredSet
}

// read reads the file and reports whether anything changed since.
func (f *fileState) read(path string) (Update, bool) {
	content, err := readBounded(path)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		content = []byte(err.Error()) // the same failure is one change, not one a second
	}
	if f.known && missing == f.missing && bytes.Equal(content, f.content) {
		return Update{Set: f.set}, false
	}
	f.known, f.missing, f.content = true, missing, content

	var targets []Target
	switch {
	case missing:
	case err != nil:
		return Update{Set: f.set, Err: err}, true
	default:
		targets, err = ParsePayload(content)
		if err != nil {
			return Update{Set: f.set, Err: fmt.Errorf("%s: %w", path, err)}, true
		}
	}
	f.set = DesiredSet{Version: f.set.Version + 1, Targets: targets}
	return Update{Set: f.set}, true
}

// readBounded reads a file up to one byte past the bound, which tells that it is too long.
func readBounded(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading Remote Configuration: %w", err)
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, MaxPayload+1))
	if err != nil {
		return nil, fmt.Errorf("reading Remote Configuration: %w", err)
	}
	return content, nil
}

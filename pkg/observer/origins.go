package observer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// origins is what is installed where, read once for all processes that see the same: two hundred workers of
// one service have one site-packages.
type origins struct{ known map[string]*origin }

// settled is how long a folder must have been as it is: another change within one tick of its file system's
// clock, of up to a second, would not show.
const settled = 2 * time.Second

// maxOrigins bounds what is kept. A large node has some hundred containers.
const maxOrigins = 256

func newOrigins() *origins { return &origins{map[string]*origin{}} }

// of returns what is installed on the search path of a process, as it is now.
func (o *origins) of(pid int, search []string, bundle string) *origin {
	key, changed, err := originKey(pid, search, bundle)
	if err != nil || time.Since(changed) < settled {
		return readOrigin(pid, search, bundle) // which says what is wrong
	}
	known := o.known[key]
	if known == nil {
		known = readOrigin(pid, search, bundle)
		if len(o.known) == maxOrigins {
			clear(o.known)
		}
		o.known[key] = known
	}
	return known
}

// originKey tells what processes see of the file system apart: by their mount namespace, their root in it, and
// the state of each folder and archive on the search path. To install or remove a distribution makes or removes
// an entry of its folder, which changes that. The time is that of the last change.
func originKey(pid int, search []string, bundle string) (key string, changed time.Time, err error) {
	root, err := openRoot(pid)
	if err != nil {
		return "", changed, err
	}
	defer root.Close()
	mounts, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return "", changed, err
	}
	var parts strings.Builder
	fmt.Fprintf(&parts, "%s %q", mounts, bundle)
	add := func(file *os.File, name string) error {
		var st unix.Stat_t
		if err := unix.Fstat(int(file.Fd()), &st); err != nil {
			return err
		}
		if at := time.Unix(st.Ctim.Unix()); at.After(changed) {
			changed = at
		}
		fmt.Fprintf(&parts, " %q %d %d %d %d %d", name, st.Dev, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano())
		return nil
	}
	if err := add(root.dir, "/"); err != nil {
		return "", changed, err
	}
	for _, entry := range search {
		if !path.IsAbs(entry) {
			continue
		}
		file, err := root.open(entry, 0)
		if errors.Is(err, fs.ErrNotExist) {
			fmt.Fprintf(&parts, " %q none", entry)
			continue
		}
		if err != nil {
			return "", changed, err
		}
		err = add(file, entry)
		file.Close()
		if err != nil {
			return "", changed, err
		}
	}
	return parts.String(), changed, nil
}

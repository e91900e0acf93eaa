package rc

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 10 * time.Second

// watch is a FileSource at work on a file.
type watch struct {
	t       *testing.T
	path    string
	updates <-chan Update
	cancel  context.CancelFunc
}

func startWatch(t *testing.T, path string) *watch {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &watch{t: t, path: path, updates: NewFileSource(path).Watch(ctx), cancel: cancel}
	t.Cleanup(w.stop)
	return w
}

// stop ends the watch, and waits until its channel is closed.
func (w *watch) stop() {
	w.cancel()
	deadline := time.After(patience)
	for {
		select {
		case _, open := <-w.updates:
			if !open {
				return
			}
		case <-deadline:
			w.t.Errorf("the channel is still open %s after the context ended", patience)
			return
		}
	}
}

func (w *watch) next() Update {
	w.t.Helper()
	select {
	case update, open := <-w.updates:
		if !open {
			w.t.Fatal("the channel closed early")
		}
		return update
	case <-time.After(patience):
		w.t.Fatalf("no update within %s", patience)
	}
	panic("unreachable")
}

// expect takes the next update, which must have no error and just these targets.
func (w *watch) expect(targets ...string) Update {
	w.t.Helper()
	update := w.next()
	if update.Err != nil {
		w.t.Fatalf("unexpected error: %v", update.Err)
	}
	if got := names(update); got != strings.Join(targets, " ") {
		w.t.Fatalf("got [%s], want %v", got, targets)
	}
	return update
}

// settles takes updates until one has no error and just these targets.
func (w *watch) settles(targets ...string) {
	w.t.Helper()
	for {
		if update := w.next(); update.Err == nil && names(update) == strings.Join(targets, " ") {
			return
		}
	}
}

// quiet holds when nothing comes for longer than a recheck takes.
func (w *watch) quiet() {
	w.t.Helper()
	select {
	case update := <-w.updates:
		w.t.Fatalf("unexpected update: [%s], error %v", names(update), update.Err)
	case <-time.After(recheck + recheck/2):
	}
}

func names(update Update) string {
	var names []string
	for _, target := range update.Set.Targets {
		names = append(names, target.String())
	}
	return strings.Join(names, " ")
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func replace(t *testing.T, path, content string) {
	t.Helper()
	write(t, path+".next", content)
	rename(t, path+".next", path)
}

func symlink(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path+".next"); err != nil {
		t.Fatal(err)
	}
	rename(t, path+".next", path)
}

func mkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestFileMissingThenCreatedThenRemoved(t *testing.T) {
	t.Parallel()
	w := startWatch(t, filepath.Join(t.TempDir(), "targets.json"))
	if first := w.expect(); first.Set.Version != 0 {
		t.Errorf("version %d before any configuration", first.Set.Version)
	}
	write(t, w.path, payload("a:b"))
	w.settles("a:b")
	if err := os.Remove(w.path); err != nil {
		t.Fatal(err)
	}
	w.expect()
	replace(t, w.path, payload("a:b"))
	w.expect("a:b")
}

// Ten changes in a third of the time that rechecks alone would need.
func TestFileRenamesAreEvents(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "targets.json")
	write(t, path, payload("a:b"))
	w := startWatch(t, path)
	version := w.expect("a:b").Set.Version
	began := time.Now()
	for range 5 {
		for _, target := range []string{"c:d", "a:b"} {
			replace(t, path, payload(target))
			update := w.expect(target)
			if update.Set.Version != version+1 {
				t.Fatalf("version %d after %d", update.Set.Version, version)
			}
			version = update.Set.Version
		}
	}
	if took := time.Since(began); took > 10*recheck/3 {
		t.Errorf("10 renames were seen after %s: by rechecks, not by events", took)
	}
}

// The contents have one length, so only times tell them apart, and these are too coarse to.
func TestFileRewrittenInPlace(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "targets.json")
	write(t, path, payload("a:b"))
	w := startWatch(t, path)
	w.expect("a:b")
	for range 20 {
		for _, target := range []string{"c:d", "e:f"} {
			write(t, path, payload(target))
		}
	}
	w.settles("e:f")
	w.quiet()
}

func TestFileWrittenInHalves(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "targets.json")
	write(t, path, payload("a:b"))
	w := startWatch(t, path)
	w.expect("a:b")
	whole := payload("c:d", "e:f")
	write(t, path, whole[:len(whole)/2])
	if update := w.next(); update.Err == nil || names(update) != "a:b" {
		t.Fatalf("half a payload: [%s], error %v", names(update), update.Err)
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteString(whole[len(whole)/2:]); err != nil {
		t.Fatal(err)
	}
	w.settles("c:d", "e:f")
}

func TestFileMalformedKeepsTheLastGoodSet(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "targets.json")
	write(t, path, payload("a:b"))
	w := startWatch(t, path)
	good := w.expect("a:b")
	for _, malformed := range []string{payload("c:d")[:20], "", payload("no colon")} {
		replace(t, path, malformed)
		update := w.next()
		if update.Err == nil || !strings.Contains(update.Err.Error(), path) {
			t.Errorf("%q: error %v does not name the file", malformed, update.Err)
		}
		if names(update) != "a:b" || update.Set.Version != good.Set.Version {
			t.Errorf("%q: set [%s] version %d", malformed, names(update), update.Set.Version)
		}
	}
	replace(t, path, payload("no colon"))
	w.quiet() // one report for one content
	replace(t, path, payload("a:b"))
	if update := w.expect("a:b"); update.Set.Version != good.Set.Version {
		t.Errorf("version %d for the set that was never given up, %d", update.Set.Version, good.Set.Version)
	}
}

func TestFileSameContentIsNoUpdate(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "targets.json")
	write(t, path, payload("a:b"))
	w := startWatch(t, path)
	w.expect("a:b")
	replace(t, path, payload("a:b"))
	w.quiet()
	replace(t, path, payload("a:b")+"\n")
	w.quiet()
	replace(t, path, payload("c:d"))
	w.expect("c:d") // it was watching
}

// A mode or an advisory is content as much as a target is.
func TestFileOtherWishForTheSameTarget(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "targets.json")
	write(t, path, payload("a:b"))
	w := startWatch(t, path)
	version := w.expect("a:b").Set.Version
	replace(t, path, objects(`{"target": "a:b", "mode": "count"}`))
	w.quiet() // the same in another form
	for i, entry := range []string{
		`{"target": "a:b", "mode": "first_hit"}`,
		`{"target": "a:b", "mode": "first_hit", "package": "p"}`,
		`{"target": "a:b", "mode": "first_hit", "package": "p", "advisories": ["CVE-1"]}`,
	} {
		replace(t, path, objects(entry))
		if update := w.expect("a:b"); update.Set.Version != version+uint64(i)+1 {
			t.Errorf("%s: version %d after %d", entry, update.Set.Version, version)
		}
	}
}

// A ConfigMap volume: targets.json -> ..data/targets.json, ..data -> ..2026; a new version is a
// new folder and a rename of ..data.
func TestFileConfigMapSwap(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for version, target := range map[string]string{"..1": "a:b", "..2": "c:d"} {
		mkdir(t, filepath.Join(dir, version))
		write(t, filepath.Join(dir, version, "targets.json"), payload(target))
	}
	symlink(t, "..1", filepath.Join(dir, "..data"))
	symlink(t, "..data/targets.json", filepath.Join(dir, "targets.json"))
	w := startWatch(t, filepath.Join(dir, "targets.json"))
	w.expect("a:b")
	symlink(t, "..2", filepath.Join(dir, "..data"))
	if err := os.RemoveAll(filepath.Join(dir, "..1")); err != nil {
		t.Fatal(err)
	}
	w.expect("c:d")
}

// No event tells of a change in the folder that a link leads to.
func TestFileBehindALink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	elsewhere := filepath.Join(t.TempDir(), "targets.json")
	write(t, elsewhere, payload("a:b"))
	symlink(t, elsewhere, filepath.Join(dir, "targets.json"))
	w := startWatch(t, filepath.Join(dir, "targets.json"))
	w.expect("a:b")
	time.Sleep(racy + 2*recheck) // until the file's times are trusted
	replace(t, elsewhere, payload("c:d"))
	w.expect("c:d")
}

func TestFolderCreatedLaterThenReplaced(t *testing.T) {
	t.Parallel()
	etc := filepath.Join(t.TempDir(), "etc")
	folder := filepath.Join(etc, "sca-probe")
	path := filepath.Join(folder, "targets.json")
	w := startWatch(t, path)
	w.expect()
	mkdir(t, folder)
	replace(t, path, payload("a:b"))
	w.expect("a:b")
	// The watch hears nothing of a folder further up, and finds a folder at its path all the time.
	mkdir(t, filepath.Join(etc+".next", "sca-probe"))
	write(t, filepath.Join(etc+".next", "sca-probe", "targets.json"), payload("c:d"))
	rename(t, etc, etc+".old")
	rename(t, etc+".next", etc)
	w.settles("c:d")
	// The watch moved to the new folder: a recheck alone would be this late every time.
	w.next10(folder, "targets.json")
}

// next10 makes ten changes, which rechecks alone would take ten times as long to see.
func (w *watch) next10(folder, name string) {
	w.t.Helper()
	time.Sleep(recheck + recheck/2) // a recheck, which renews the watch
	began := time.Now()
	for range 5 {
		for _, target := range []string{"e:f", "g:h"} {
			replace(w.t, filepath.Join(folder, name), payload(target))
			w.expect(target)
		}
	}
	if took := time.Since(began); took > 10*recheck/3 {
		w.t.Errorf("10 renames were seen after %s: by rechecks, not by events", took)
	}
}

func TestFileThatIsNoFile(t *testing.T) {
	t.Parallel()
	for name, create := range map[string]func(string) error{
		"named pipe": func(path string) error { return unix.Mkfifo(path, 0o644) },
		"endless":    func(path string) error { return os.Symlink("/dev/zero", path) },
	} {
		path := filepath.Join(t.TempDir(), "targets.json")
		if err := create(path); err != nil {
			t.Fatal(err)
		}
		w := startWatch(t, path)
		if update := w.next(); update.Err == nil || !strings.Contains(update.Err.Error(), "not a regular file") {
			t.Errorf("%s: error %v", name, update.Err)
		}
		w.quiet()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		w.expect()
	}
}

func TestFileTooLong(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "targets.json")
	write(t, path, payload("a:b"))
	if err := os.Truncate(path, 1<<40); err != nil {
		t.Skipf("no sparse file of 1 TiB in %s: %v", path, err)
	}
	w := startWatch(t, path)
	if update := w.next(); update.Err == nil || !strings.Contains(update.Err.Error(), "limit") {
		t.Errorf("error %v", update.Err)
	}
}

func TestDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	write(t, file("b.json"), payload("b:b", "x:x"))
	write(t, file("a.json"), payload("a:a"))
	write(t, file(".hidden.json"), payload("no:no"))
	write(t, file("README"), "no payload")
	w := startWatch(t, dir)
	w.expect("a:a", "b:b", "x:x")

	replace(t, file("c.json"), payload("c:c", "x:x"))
	w.expect("a:a", "b:b", "x:x", "c:c")
	remove(t, file("b.json"))
	w.settles("a:a", "c:c", "x:x")

	// One is refused; the others are not.
	replace(t, file("a.json"), payload("no colon"))
	update := w.next()
	if update.Err == nil || !strings.Contains(update.Err.Error(), file("a.json")) || names(update) != "a:a c:c x:x" {
		t.Errorf("[%s], error %v", names(update), update.Err)
	}
	replace(t, file("c.json"), payload("c:d"))
	update = w.next()
	if update.Err == nil || names(update) != "a:a c:d" {
		t.Errorf("[%s], error %v", names(update), update.Err)
	}
	remove(t, file("a.json"))
	w.expect("c:d")
	remove(t, file("c.json"))
	w.expect()
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// A ConfigMap volume with several keys changes all of them at once.
func TestDirectoryConfigMapSwap(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for version, target := range map[string]string{"..1": "a:b", "..2": "c:d"} {
		mkdir(t, filepath.Join(dir, version))
		for _, key := range []string{"one.json", "two.json"} {
			write(t, filepath.Join(dir, version, key), payload(target, key[:3]+":f"))
		}
	}
	symlink(t, "..1", filepath.Join(dir, "..data"))
	symlink(t, "..data/one.json", filepath.Join(dir, "one.json"))
	symlink(t, "..data/two.json", filepath.Join(dir, "two.json"))
	w := startWatch(t, dir)
	version := w.expect("a:b", "one:f", "two:f").Set.Version
	symlink(t, "..2", filepath.Join(dir, "..data"))
	if update := w.expect("c:d", "one:f", "two:f"); update.Set.Version != version+1 {
		t.Errorf("version %d after %d", update.Set.Version, version)
	}
	// A key goes with the next version.
	mkdir(t, filepath.Join(dir, "..3"))
	write(t, filepath.Join(dir, "..3", "two.json"), payload("e:f"))
	symlink(t, "..3", filepath.Join(dir, "..data"))
	w.expect("e:f")
}

// The same path is a directory, a file, nothing, and a directory again.
func TestDirectoryThatIsAFileAtTimes(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "targets")
	mkdir(t, path)
	write(t, filepath.Join(path, "a.json"), payload("a:b"))
	w := startWatch(t, path)
	w.expect("a:b")
	rename(t, path, path+".old")
	w.settles()
	replace(t, path, payload("c:d"))
	w.settles("c:d")
	remove(t, path)
	w.settles()
	rename(t, path+".old", path)
	w.settles("a:b")
	w.next10(path, "a.json")
}

func TestDirectoryWithTooMany(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.json"), payload("a:b"))
	w := startWatch(t, dir)
	w.expect("a:b")
	next := t.TempDir()
	for i := range MaxConfigurations + 1 {
		write(t, filepath.Join(next, fmt.Sprintf("%d.json", i)), payload("c:d"))
	}
	rename(t, dir, dir+".old")
	w.settles()
	rename(t, next, dir)
	if update := w.next(); update.Err == nil || !strings.Contains(update.Err.Error(), "has 101 payloads, the limit is 100") {
		t.Errorf("[%s], error %v", names(update), update.Err)
	}
	remove(t, filepath.Join(dir, "0.json"))
	w.settles("c:d")
}

// The channel closes while nobody receives, too.
func TestWatchEndsWithItsContext(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "targets.json")
	ctx, cancel := context.WithCancel(context.Background())
	updates := NewFileSource(path).Watch(ctx)
	time.Sleep(50 * time.Millisecond)
	cancel()
	for deadline := time.After(patience); ; {
		select {
		case _, open := <-updates:
			if !open {
				return
			}
		case <-deadline:
			t.Fatal("the channel is still open")
		}
	}
}

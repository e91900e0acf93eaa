package testenv

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A follower's breakpoints are in every process that runs the probed binary, other tests' subjects among
// them. A test that looks for breakpoints in a process therefore runs beside no test that follows, in
// whichever package that is: `go test` runs packages side by side.

// MayFollow waits for tests that look for breakpoints, and lets none begin until this one ends.
func MayFollow(t testing.TB) {
	t.Helper()
	lockProbing(t, unix.LOCK_SH)
}

// NobodyFollows waits for tests that follow, and lets none begin until this one ends.
func NobodyFollows(t testing.TB) {
	t.Helper()
	lockProbing(t, unix.LOCK_EX)
}

func lockProbing(t testing.TB, how int) {
	t.Helper()
	file, err := os.OpenFile(filepath.Join(os.TempDir(), "sca-probe-tests-probing.lock"), os.O_RDONLY|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	for {
		switch err := unix.Flock(int(file.Fd()), how); err {
		case nil:
			return
		case unix.EINTR:
		default:
			t.Fatalf("locking %s: %v", file.Name(), err)
		}
	}
}

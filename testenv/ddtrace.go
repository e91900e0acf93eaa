package testenv

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// NewestDdtrace is the newest ddtrace that there are tests with.
const NewestDdtrace = "4.16.0"

// A DdtraceRelease is one of ddtrace, on one CPython. scripts/ddtrace installs each.
type DdtraceRelease struct {
	Python, Ddtrace string
	long            bool // installed and covered by `make test-all` only
}

// DdtraceReleases are the newest of each line that the integration knows, on one CPython, and for `make test-all`
// on the oldest and the newest that it and the engine support.
var DdtraceReleases = []DdtraceRelease{
	{"3.12", NewestDdtrace, false},
	{"3.12", "3.19.9", false},
	{"3.12", "2.21.12", false},
	{"3.9", NewestDdtrace, true},
	{"3.14", NewestDdtrace, true},
	{"3.8", "3.19.9", true},
	{"3.14", "3.19.9", true},
	{"3.8", "2.21.12", true},
	{"3.13", "2.21.12", true},
}

// EachDdtraceRelease runs f as a subtest for every release that this run covers.
func EachDdtraceRelease(t *testing.T, f func(t *testing.T, r DdtraceRelease)) {
	t.Helper()
	for _, r := range DdtraceReleases {
		if !r.long || os.Getenv("SCA_PROBE_TEST_ALL") != "" {
			t.Run(r.String(), func(t *testing.T) { f(t, r) })
		}
	}
}

// String returns "3.12-4.16.0": the version of CPython, then the release.
func (r DdtraceRelease) String() string { return r.Python + "-" + r.Ddtrace }

// Line is the major version of ddtrace.
func (r DdtraceRelease) Line() string { return r.Ddtrace[:1] }

// Environment returns the virtual environment that scripts/ddtrace made for the release. Where it is not
// installed the test is skipped, and fails in CI.
func (r DdtraceRelease) Environment(t testing.TB) string {
	t.Helper()
	folder := filepath.Join(Root(), "build", "ddtrace", r.String())
	if _, err := os.Stat(filepath.Join(folder, "ready")); err != nil {
		Missing(t, fmt.Sprintf("no ddtrace %s for CPython %s: run `make ddtrace`, or `make ddtrace-all`", r.Ddtrace, r.Python))
	}
	return folder
}

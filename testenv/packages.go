package testenv

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// NewestDdtrace is the newest ddtrace that there are tests with.
const NewestDdtrace = "4.16.0"

// Ddtrace returns the virtual environment that scripts/ddtrace made for a release of ddtrace and a version of
// CPython. Where it is not installed the test is skipped, and fails in CI.
func Ddtrace(t testing.TB, python, release string) string {
	t.Helper()
	folder := filepath.Join(Root(), "build", "ddtrace", python+"-"+release)
	if _, err := os.Stat(filepath.Join(folder, "ready")); err != nil {
		Missing(t, fmt.Sprintf("no ddtrace %s for CPython %s: run `make ddtrace`, or `make ddtrace-all`", release, python))
	}
	return folder
}

// PackagePath returns what to put into PYTHONPATH for a program to import a package of those that
// scripts/pythons installs for each version: wrapt, for which subjects/targets.py has cases, and gevent.
// Where it is not installed the test is skipped, and fails in CI.
func PackagePath(t *testing.T, in Interpreter, name string) string {
	t.Helper()
	path := filepath.Join(Root(), "build", "pythons", name, fmt.Sprintf("%d.%d", in.Major, in.Minor))
	if _, err := os.Stat(filepath.Join(path, name)); err != nil {
		Missing(t, fmt.Sprintf("no %s in %s: run `make pythons`", name, path))
	}
	return path
}

package testenv

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

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

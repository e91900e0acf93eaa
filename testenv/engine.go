package testenv

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/procfs"
)

// Gates are the variables that turn the engine on.
var Gates = []string{"DD_SCA_DETECTION_ENABLED=1", "DD_APPSEC_ENABLED=1", "DD_APPSEC_SCA_ENABLED=1"}

// ProbePath is the observer's binary, whose `run` starts programs with the engine that is built beside it.
func ProbePath(t testing.TB) string {
	t.Helper()
	path := filepath.Join(Root(), "build", "bin", "sca-probe")
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run `make build` first", err)
	}
	return path
}

// EngineFiles returns the files of the engine that are mapped into a process.
func EngineFiles(t testing.TB, pid int) []string {
	t.Helper()
	process, err := procfs.NewProc(pid)
	if err != nil {
		t.Fatal(err)
	}
	maps, err := process.ProcMaps()
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, m := range maps {
		if strings.Contains(m.Pathname, "_engine") {
			files = append(files, m.Pathname)
		}
	}
	return slices.Compact(files)
}

// Payload is what Remote Configuration says of targets, in either form: a string or an object.
func Payload[T any](targets ...T) map[string]any {
	return map[string]any{"sca_instrumentation": map[string]any{"targets": append([]T{}, targets...)}}
}

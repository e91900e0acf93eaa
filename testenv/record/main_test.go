package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sca-probe/testenv"
)

// TestRecord records the oldest and the newest version, which pyframes replays before it writes.
func TestRecord(t *testing.T) {
	all := testenv.Interpreters(testenv.Observer)
	if len(all) < 2 {
		testenv.Missing(t, "no two interpreters: run `make pythons`")
	}
	output := filepath.Join(t.TempDir(), "recorded")
	if err := run(output, []string{all[0].Path, all[len(all)-1].Path}); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(output, "3.*.gz"))
	if err != nil || len(files) != 2 {
		t.Fatalf("wrote %v, %v", files, err)
	}
	for _, file := range files {
		// As large as those that are committed.
		made, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		kept, err := os.Stat(filepath.Join(testenv.Root(), "pkg/pyframes/testdata/recorded", filepath.Base(file)))
		if err != nil {
			t.Fatal(err)
		}
		if ratio := float64(made.Size()) / float64(kept.Size()); ratio < 0.5 || ratio > 2 {
			t.Errorf("%s has %d bytes, and the one that is kept %d", file, made.Size(), kept.Size())
		}
	}
}

func TestWhatCannotBeRecorded(t *testing.T) {
	output := t.TempDir()
	for python, want := range map[string]string{
		"/nowhere/bin/python3": "no such file or directory",
		"/bin/true":            "not a CPython interpreter",
	} {
		if err := run(output, []string{python}); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), python) {
			t.Errorf("%s: %v, want that it says %q", python, err, want)
		}
	}
	if files, err := os.ReadDir(output); err != nil || len(files) > 0 {
		t.Errorf("left %v, %v", files, err)
	}
}

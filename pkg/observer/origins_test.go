package observer

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestOriginsAreSharedUntilSomethingChanges installs, replaces and removes a distribution between two looks.
func TestOriginsAreSharedUntilSomethingChanges(t *testing.T) {
	folder, other := t.TempDir(), t.TempDir()
	put := func(version string) {
		t.Helper()
		info := filepath.Join(folder, "fast-"+version+".dist-info")
		if err := os.Mkdir(info, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(info, "METADATA"), []byte("Name: fast\nVersion: "+version+"\n\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(version string) {
		t.Helper()
		if err := os.RemoveAll(filepath.Join(folder, "fast-"+version+".dist-info")); err != nil {
			t.Fatal(err)
		}
	}
	shared := newOrigins()
	look := func(want string) *origin {
		t.Helper()
		o := shared.of(os.Getpid(), []string{folder, "relative"}, "")
		got := ""
		if d, _ := o.of(filepath.Join(folder, "fast", "parse.py")); d != nil {
			got = d.String()
		}
		if got != want {
			t.Errorf("the file is of %q, want %q; %v %v %v", got, want, o.warnings, o.packages, o.search)
		}
		return o
	}
	same := func(want string) {
		t.Helper()
		time.Sleep(settled + 100*time.Millisecond)
		if before := look(want); look(want) != before {
			t.Error("what did not change is read again")
		}
	}
	same("")
	put("1.0")
	look("fast 1.0")
	same("fast 1.0")
	remove("1.0")
	put("2.0")
	look("fast 2.0")
	same("fast 2.0")
	o := look("fast 2.0")
	for name, another := range map[string]*origin{
		"another folder": shared.of(os.Getpid(), []string{folder, "relative", other}, ""),
		"a bundle":       shared.of(os.Getpid(), []string{folder, "relative"}, folder),
	} {
		if another == o {
			t.Errorf("%s makes no difference", name)
		}
	}
	remove("2.0")
	look("")
}

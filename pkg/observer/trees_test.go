package observer

import (
	"archive/zip"
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// FuzzArchive reads what is installed in files that are no archives, or none any more.
func FuzzArchive(f *testing.F) {
	var seed bytes.Buffer
	z := zip.NewWriter(&seed)
	for name, content := range map[string]string{
		"fp-1.dist-info/METADATA":        "Name: fp\nVersion: 1\n\nbody",
		"fp-1.dist-info/RECORD":          "fp/__init__.py,sha256=x,3\n\"odd,name.py\",,\n",
		"fp-1.dist-info/direct_url.json": `{"url": "file:///srv/fp", "dir_info": {"editable": true}}`,
		"egg.egg-info/PKG-INFO":          "Name: egg\n",
		"egg.egg-info/top_level.txt":     "one\ntwo\n",
		"old.egg-info":                   "Name: old\nVersion: 2\n",
		"fp/__init__.py":                 "",
	} {
		w, err := z.Create(name)
		if err != nil {
			f.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			f.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(seed.Bytes())
	f.Add([]byte("PK\x05\x06"))
	path := filepath.Join(f.TempDir(), "app.pyz")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		o := readOrigin(os.Getpid(), []string{path}, "")
		if bytes.Equal(data, seed.Bytes()) && (len(o.installed) != 3 || len(o.warnings) != 0) {
			t.Errorf("%v, %q", o.installed, o.warnings)
		}
		for file := range o.files {
			o.of(file)
			o.module(file)
		}
	})
}

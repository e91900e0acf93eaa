package testenv

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	testFunction = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)[A-Z]\w*)\(`)
	testName     = regexp.MustCompile(`\b(?:Test|Fuzz|Benchmark)[A-Z]\w*…?`)
	pythonBlock  = regexp.MustCompile("(?s)```python\n(.*?)```")
)

// TestDocumentedTestsExist looks for each test that a page names. A name that ends in … stands for all that begin so.
func TestDocumentedTestsExist(t *testing.T) {
	var names []string
	for _, folder := range []string{"cmd", "pkg", "testenv"} {
		err := filepath.WalkDir(filepath.Join(Root(), folder), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			for _, found := range testFunction.FindAllSubmatch(text, -1) {
				names = append(names, string(found[1]))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	exists := func(documented string) bool {
		prefix, many := strings.CutSuffix(documented, "…")
		for _, name := range names {
			if name == documented || many && strings.HasPrefix(name, prefix) {
				return true
			}
		}
		return false
	}
	for page, text := range pages(t) {
		for _, name := range testName.FindAllString(text, -1) {
			if !exists(name) {
				t.Errorf("%s names %s, and there is no such test", page, name)
			}
		}
	}
}

// TestDocumentedInterfacesExist compares the lines of Python in the pages, each a definition, with the file named above them.
func TestDocumentedInterfacesExist(t *testing.T) {
	compared := 0
	for page, text := range pages(t) {
		for _, block := range pythonBlock.FindAllStringSubmatch(text, -1) {
			source := ""
			for line := range strings.Lines(block[1]) {
				line = strings.TrimSpace(line)
				if file, named := strings.CutPrefix(line, "# "); named {
					content, err := os.ReadFile(filepath.Join(Root(), "python", file))
					if err != nil {
						t.Fatalf("%s: %v", page, err)
					}
					source = string(content)
					continue
				}
				definition, _, _ := strings.Cut(line, " ...")
				if source == "" || definition == "" {
					continue
				}
				compared++
				if !regexp.MustCompile(`(?m)^\s*` + regexp.QuoteMeta(definition)).MatchString(source) {
					t.Errorf("%s has %q, and the code does not", page, definition)
				}
			}
		}
	}
	if compared == 0 {
		t.Error("no page has an interface")
	}
}

// pages are the documents, by their names.
func pages(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(Root(), "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, file := range append(files, filepath.Join(Root(), "README.md")) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		found[filepath.Base(file)] = string(text)
	}
	return found
}

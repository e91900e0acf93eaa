// Package testenv finds the real things that tests run against: CPython builds,
// and subject programs to run in them. Nothing here stands in for a part under test.
package testenv

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// An Interpreter is a CPython build on this machine that tests run.
type Interpreter struct {
	Name string // what the build is, "3.11-shared"
	Path string // the python executable
}

// builds lists the CPython builds that every test covers, each with the places
// where it may be found. The first that exists is taken.
var builds = []struct {
	name   string
	places []string
}{
	{"3.11-shared", []string{"~/.pyenv/versions/3.11.*/bin/python3.11", "build/pythons/3.11-shared/bin/python3.11"}},
	{"3.11-debian", []string{"/usr/bin/python3.11"}},
	{"3.13-shared", []string{"~/.pyenv/versions/3.13.*/bin/python3.13", "build/pythons/3.13/bin/python3.13"}},
	{"3.13-standalone", []string{"build/pythons/3.13/bin/python3.13"}},
	{"3.14-standalone", []string{"build/pythons/3.14/bin/python3.14"}},
}

// EachInterpreter runs f as a subtest for every build. A build that the machine
// lacks is skipped with what would supply it, and fails the test in CI.
func EachInterpreter(t *testing.T, f func(t *testing.T, in Interpreter)) {
	t.Helper()
	for _, b := range builds {
		t.Run(b.name, func(t *testing.T) {
			path := find(b.places)
			if path == "" {
				missing(t, fmt.Sprintf("no CPython %s in any of %v: run `make pythons`", b.name, b.places))
			}
			f(t, Interpreter{Name: b.name, Path: path})
		})
	}
}

// Interpreters returns the builds that this machine has.
func Interpreters() []Interpreter {
	var have []Interpreter
	for _, b := range builds {
		if path := find(b.places); path != "" {
			have = append(have, Interpreter{Name: b.name, Path: path})
		}
	}
	return have
}

// missing skips a test that this machine cannot run, and fails it in CI, where
// everything that tests need must have been installed.
func missing(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func find(places []string) string {
	for _, place := range places {
		if rest, ok := trimHome(place); ok {
			home, err := os.UserHomeDir()
			if err != nil {
				continue
			}
			place = filepath.Join(home, rest)
		} else if !filepath.IsAbs(place) {
			place = filepath.Join(Root(), place)
		}
		matches, err := filepath.Glob(place)
		if err == nil && len(matches) > 0 {
			return matches[len(matches)-1]
		}
	}
	return ""
}

func trimHome(place string) (string, bool) {
	if len(place) > 2 && place[:2] == "~/" {
		return place[2:], true
	}
	return "", false
}

// Root returns the top folder of the checkout.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(file))
}

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

// An Interpreter is a Python build on this machine that tests run.
type Interpreter struct {
	Name         string // what the build is, "3.11-shared"
	Path         string // the python executable
	Major, Minor int    // the language version, 3 and 11
}

// A Set says which builds a test covers: those that one half of sca-probe works
// with, or those that it must refuse. Engine|Observer is the builds that are in both.
type Set uint

// Every is the set of all builds.
const Every Set = 0

// The builds that the engine and the observer work with, and those that they refuse.
const (
	Engine          Set = 1 << iota // the engine patches functions in these
	Observer                        // the observer reads and probes these
	EngineRefuses                   // the engine must say that it cannot work with these
	ObserverRefuses                 // the observer must say that it cannot read these
	TestSuite                       // these come with CPython's own tests, `python -m test`

	onePerVersion
)

// OnePerVersion narrows a set to the first build of each Python version, for tests
// that are slow and do not depend on how CPython was built.
func OnePerVersion(set Set) Set { return set | onePerVersion }

// A build is one row of the table: a Python build, and what it is for.
type build struct {
	name   string
	minor  int // of Python 3
	sets   Set
	places []string // where it may be; the first that exists is taken
	long   bool     // supplied by `make pythons-all`, covered by `make test-all` only
}

// builds lists every Python build that tests run on. scripts/pythons and
// scripts/install-deps supply those that a machine lacks: all but 3.6 to 3.8, which
// only pyenv has. "Shared" builds have the interpreter in a libpython, with symbols.
var builds = []build{
	{"3.6-shared", 6, EngineRefuses | Observer, []string{pyenv(6)}, false},
	{"3.7-shared", 7, EngineRefuses | Observer, []string{pyenv(7)}, false},
	{"3.8-shared", 8, TestSuite | Engine | Observer, []string{pyenv(8)}, false},
	{"3.9-shared", 9, TestSuite | Engine | Observer, []string{pyenv(9), "build/pythons/bullseye/usr/bin/python3.9"}, false},
	{"3.10-shared", 10, TestSuite | Engine | Observer, []string{pyenv(10), "build/pythons/3.10-standalone/bin/python3.10"}, false},
	{"3.11-shared", 11, TestSuite | Engine | Observer, []string{pyenv(11), "build/pythons/3.11-shared/bin/python3.11"}, false},
	{"3.12-shared", 12, TestSuite | Engine | Observer, []string{pyenv(12), "build/pythons/3.12-standalone/bin/python3.12"}, false},
	{"3.13-shared", 13, TestSuite | Engine | Observer, []string{pyenv(13), "build/pythons/3.13-standalone/bin/python3.13"}, false},

	// Debian 12's own: static, without symbols.
	{"3.11-debian", 11, Engine | Observer, []string{"/usr/bin/python3.11"}, false},

	// python-build-standalone's, built with PGO, LTO and BOLT: shared up to 3.13,
	// static and with the tail-call interpreter in 3.14.
	{"3.10-standalone", 10, Engine | Observer, []string{"build/pythons/3.10-standalone/bin/python3.10"}, true},
	{"3.11-standalone", 11, Engine | Observer, []string{"build/pythons/3.11-standalone/bin/python3.11"}, true},
	{"3.12-standalone", 12, Engine | Observer, []string{"build/pythons/3.12-standalone/bin/python3.12"}, false},
	{"3.13-standalone", 13, Engine | Observer, []string{"build/pythons/3.13-standalone/bin/python3.13"}, false},
	{"3.14-standalone", 14, Engine | Observer, []string{"build/pythons/3.14-standalone/bin/python3.14"}, false},

	// Debian forky's: static, with the eval loop in a .cold part; 3.14 and 3.15 hold
	// the JIT, switched off.
	{"3.13-forky", 13, Engine | Observer, []string{"build/pythons/forky/usr/bin/python3.13"}, false},
	{"3.14-forky", 14, TestSuite | Engine | Observer, []string{"build/pythons/forky/usr/bin/python3.14"}, false},
	{"3.15-forky", 15, TestSuite | Engine | Observer, []string{"build/pythons/forky/usr/bin/python3.15"}, false},

	// What nobody supports: a build with Py_DEBUG, one without the GIL, and one that is not CPython.
	{"3.11-debug", 11, EngineRefuses | ObserverRefuses, []string{"/usr/bin/python3.11-dbg"}, false},
	{"3.13t", 13, EngineRefuses | ObserverRefuses, []string{"build/pythons/3.13t/bin/python3.13t"}, true},
	{"3.9-pypy", 9, EngineRefuses, []string{"/usr/bin/pypy3"}, false},
}

// pyenv is where pyenv keeps a build of a version of Python 3.
func pyenv(minor int) string {
	return fmt.Sprintf("~/.pyenv/versions/3.%d.*/bin/python3.%[1]d", minor)
}

// EachInterpreter runs f as a subtest for every build of a set. A build that the
// machine lacks is skipped with what would supply it, and fails the test in CI.
// The subtests run one after another unless f calls t.Parallel.
func EachInterpreter(t *testing.T, set Set, f func(t *testing.T, in Interpreter)) {
	t.Helper()
	chosen := covered(set)
	if len(chosen) == 0 {
		t.Fatal("no build in testenv/interpreters.go is in the set that this test covers")
	}
	for _, b := range chosen {
		t.Run(b.name, func(t *testing.T) {
			in, ok := b.find()
			if !ok {
				Missing(t, fmt.Sprintf("no CPython %s in any of %v: run `%s`", b.name, b.places, b.supplier()))
			}
			f(t, in)
		})
	}
}

// Interpreters returns the builds of a set that this machine has.
func Interpreters(set Set) []Interpreter {
	var have []Interpreter
	for _, b := range covered(set) {
		if in, ok := b.find(); ok {
			have = append(have, in)
		}
	}
	return have
}

// covered returns the builds of a set, without those left to `make test-all`, which
// sets SCA_PROBE_TEST_ALL.
func covered(set Set) []build {
	var chosen []build
	seen := map[int]bool{}
	for _, b := range builds {
		if marks := set &^ onePerVersion; b.sets&marks != marks {
			continue
		}
		if b.long && os.Getenv("SCA_PROBE_TEST_ALL") == "" {
			continue
		}
		if set&onePerVersion != 0 && seen[b.minor] {
			continue
		}
		seen[b.minor] = true
		chosen = append(chosen, b)
	}
	return chosen
}

// supplier returns the command that supplies a build.
func (b build) supplier() string {
	switch {
	case b.long:
		return "make pythons-all"
	case len(b.places) == 1 && b.places[0] == pyenv(b.minor):
		return fmt.Sprintf("pyenv install 3.%d", b.minor)
	}
	return "make pythons"
}

func (b build) find() (Interpreter, bool) {
	for _, place := range b.places {
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
			return Interpreter{Name: b.name, Path: matches[len(matches)-1], Major: 3, Minor: b.minor}, true
		}
	}
	return Interpreter{}, false
}

// Find returns the first build of a set that is what a test needs. Where this machine has none the test is
// skipped, and fails in CI.
func Find(t testing.TB, set Set, what string, is func(Interpreter) bool) Interpreter {
	t.Helper()
	for _, in := range Interpreters(set) {
		if is(in) {
			return in
		}
	}
	Missing(t, fmt.Sprintf("no %s: run `make pythons`", what))
	return Interpreter{}
}

// OfMinor returns the first build of a set that is of CPython 3.minor.
func OfMinor(t testing.TB, set Set, minor int) Interpreter {
	t.Helper()
	return Find(t, set, fmt.Sprintf("CPython 3.%d", minor), func(in Interpreter) bool { return in.Minor == minor })
}

// Missing skips a test that this machine cannot run, and fails it in CI, where
// everything that tests need must have been installed.
func Missing(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// SkipBenchmark skips a benchmark that this machine cannot run, and prints why: of benchmarks, go test keeps that to
// itself. CI runs none.
func SkipBenchmark(b *testing.B, why string) {
	b.Helper()
	fmt.Fprintf(os.Stderr, "%s is skipped: %s\n", b.Name(), why)
	b.SkipNow()
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

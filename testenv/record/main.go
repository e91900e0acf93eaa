// Command record records the process memory that the tests of pkg/pyframes replay: for one build of each
// version of CPython, the memory that it takes to find the targets in testenv/subjects, to read what running
// them left, and to read their functions, with the answers that Python itself gives.
//
// Memory holds paths and the environment. So each process runs in a mount namespace of its own, where all
// that it sees of this machine is at the same paths on any; what is private all the same is refused.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"sca-probe/pkg/pyframes"
	"sca-probe/testenv"
)

const usage = `usage: record [-output FOLDER] [PYTHON...]

Record the process memory that tests of pkg/pyframes replay, as FOLDER/3.MINOR.gz: of the interpreters
named, or of one build of each version that this machine has ("make pythons" supplies them). Needs root.

`

func main() {
	flags := flag.NewFlagSet("record", flag.ContinueOnError)
	output := flags.String("output", filepath.Join(testenv.Root(), "pkg", "pyframes", "testdata", "recorded"), "the folder to write to")
	flags.Usage = func() { fmt.Fprint(flags.Output(), usage); flags.PrintDefaults() }
	if err := flags.Parse(os.Args[1:]); errors.Is(err, flag.ErrHelp) {
		return
	} else if err != nil {
		os.Exit(2)
	}
	if err := run(*output, flags.Args()); err != nil {
		fmt.Fprintf(os.Stderr, "record: %v\n", err)
		os.Exit(1)
	}
}

// run records the interpreters at the paths, or one of each version.
func run(output string, pythons []string) error {
	if os.Geteuid() != 0 {
		return errors.New("a mount namespace is only for root: run `make record`")
	}
	if len(pythons) == 0 {
		for _, in := range testenv.Interpreters(testenv.OnePerVersion(testenv.Observer)) {
			pythons = append(pythons, in.Path)
		}
	}
	if len(pythons) == 0 {
		return errors.New("this machine has no interpreter to record: run `make pythons`, or name one")
	}
	if err := os.MkdirAll(output, 0o755); err != nil {
		return err
	}
	for _, python := range pythons {
		path, size, err := record(output, python)
		if err != nil {
			return fmt.Errorf("%s: %w", python, err)
		}
		fmt.Printf("%s: %d KB, of %s\n", path, size>>10, python)
	}
	return nil
}

// record records one interpreter, and returns where and how much. It leaves what was there if it fails.
func record(output, python string) (path string, size int, err error) {
	s, err := start(python)
	if err != nil {
		return "", 0, err
	}
	defer s.end()
	known := pyframes.Known{
		Ran:     map[string]bool{"shapes:never": false, "shapes:plain": false, "shapes:closure_generator": false},
		Modules: []string{"shapes", "targets"},
		Private: []string{testenv.Root(), "PATH="},
	}
	if home, err := os.UserHomeDir(); err == nil {
		known.Private = append(known.Private, home+"/")
	}
	if known.Targets, err = s.targets(); err != nil {
		return "", 0, err
	}
	for _, name := range []string{"keywords", "generator", "raises", "Shapes.Inner.deep", "wrapped"} {
		if err := s.ask(map[string]any{"call": name, "times": 3}, nil); err != nil {
			return "", 0, err
		}
		known.Ran["shapes:"+name] = true
	}
	var minor int
	if err := s.ask(map[string]any{"eval": "sys.version_info[1]"}, &minor); err != nil {
		return "", 0, err
	}
	var recorded bytes.Buffer
	if err := pyframes.Record(&recorded, s.pid, known); err != nil {
		return "", 0, err
	}
	path = filepath.Join(output, fmt.Sprintf("3.%d.gz", minor))
	return path, recorded.Len(), os.WriteFile(path, recorded.Bytes(), 0o644)
}

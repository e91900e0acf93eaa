package bytecode

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"sca-probe/testenv"
)

type subjectCodes struct {
	Version [2]int
	Opcodes struct {
		Opcodes  map[string]int
		Caches   map[string]int
		Jumps    map[string]bool
		Absolute []string
	}
	Codes []struct {
		Name string
		Code Code
	}
}

// TestInterpreters rewrites the functions of a part of the standard library and of every shape in
// testdata/shapes.py; testdata/subject.py then checks the result on the interpreter itself.
func TestInterpreters(t *testing.T) {
	testenv.EachInterpreter(t, func(t *testing.T, in testenv.Interpreter) { testInterpreter(t, in.Path) })
	t.Run("3.12", func(t *testing.T) {
		home, err := os.UserHomeDir()
		if err != nil {
			t.Skip(err)
		}
		found, _ := filepath.Glob(filepath.Join(home, ".pyenv/versions/3.12.*/bin/python3.12"))
		if len(found) == 0 {
			t.Skip("no CPython 3.12 in ~/.pyenv/versions")
		}
		testInterpreter(t, found[len(found)-1])
	})
}

func testInterpreter(t *testing.T, python string) {
	t.Parallel()
	// Opened here, so that go test runs again when only these have changed.
	for _, file := range []string{"testdata/subject.py", "testdata/shapes.py", python} {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, python, "testdata/subject.py")
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	cmd.WaitDelay = 2 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(stdout)
	receive := func(into any) {
		line, err := lines.ReadBytes('\n')
		if err == nil {
			err = json.Unmarshal(line, into)
		}
		if err != nil {
			cmd.Wait()
			t.Fatalf("%s testdata/subject.py: %v\n%s", python, err, stderr.String())
		}
	}
	var subject subjectCodes
	receive(&subject)
	version := Version{subject.Version[0], subject.Version[1]}
	checkOpcodes(t, version, subject)

	rewritten := make([]Code, len(subject.Codes))
	for i, c := range subject.Codes {
		original := cloneCode(c.Code)
		rewritten[i], err = InsertPrologue(version, c.Code)
		if err != nil {
			t.Errorf("%s: %v", c.Name, err)
		}
		if !equalCode(original, c.Code) {
			t.Errorf("%s: the input was written to", c.Name)
		}
	}
	if t.Failed() {
		stdin.Close()
		cmd.Wait()
		return
	}
	if err := json.NewEncoder(stdin).Encode(rewritten); err != nil {
		t.Fatalf("answer the subject: %v\n%s", err, stderr.String())
	}
	var report struct {
		Failures []string
		Counts   map[string]int
	}
	receive(&report)
	io.Copy(io.Discard, lines)
	if err := cmd.Wait(); err != nil {
		t.Errorf("%s testdata/subject.py: %v\n%s", python, err, stderr.String())
	}
	for i, failure := range report.Failures {
		if i == 20 {
			t.Errorf("and %d more", len(report.Failures)-i)
			break
		}
		t.Error(failure)
	}
	t.Log(version, report.Counts)
	// What the subject is there to cover must have come up.
	atLeast := map[string]int{"codes": 2000, "shapes": 35, "hook calls": 9000, "jumps": 5000, "jumps to the start": 1,
		"location entries split": 100, "with EXTENDED_ARG in the prologue": 3}
	if version.Minor >= 12 {
		atLeast["handlers across the prologue"] = 50
	}
	for what, n := range atLeast {
		if report.Counts[what] < n {
			t.Errorf("%d %s, want at least %d", report.Counts[what], what, n)
		}
	}
}

// checkOpcodes compares the table with the interpreter's own.
func checkOpcodes(t *testing.T, v Version, subject subjectCodes) {
	t.Helper()
	ops := versions[v]
	if ops == nil {
		t.Fatalf("no table for %s", v)
	}
	op := func(name string) byte {
		n, ok := subject.Opcodes.Opcodes[name]
		if !ok {
			t.Errorf("%s has no opcode %s", v, name)
		}
		return byte(n)
	}
	if ops.resume != op("RESUME") || ops.extendedArg != op("EXTENDED_ARG") {
		t.Errorf("RESUME is %d and EXTENDED_ARG %d", op("RESUME"), op("EXTENDED_ARG"))
	}
	if want := before(op("COPY_FREE_VARS"), op("MAKE_CELL"), op("RETURN_GENERATOR"), op("POP_TOP")); !maps.Equal(ops.before, want) {
		t.Errorf("before RESUME: table %v, interpreter %v", ops.before, want)
	}
	caches := map[byte]int{}
	for opcode, n := range subject.Opcodes.Caches {
		caches[number(t, opcode)] = n
	}
	if !maps.Equal(ops.caches, caches) {
		t.Errorf("caches: table %v, interpreter %v", ops.caches, caches)
	}
	jumps := map[byte]bool{}
	for opcode, backward := range subject.Opcodes.Jumps {
		jumps[number(t, opcode)] = backward
	}
	if !maps.Equal(ops.jumps, jumps) {
		t.Errorf("jumps: table %v, interpreter %v", ops.jumps, jumps)
	}
	if len(subject.Opcodes.Absolute) > 0 {
		t.Errorf("absolute jumps: %v", subject.Opcodes.Absolute)
	}
}

func number(t *testing.T, opcode string) byte {
	n, err := strconv.ParseUint(opcode, 10, 8)
	if err != nil {
		t.Fatal(err)
	}
	return byte(n)
}

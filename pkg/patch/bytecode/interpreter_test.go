package bytecode

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"sca-probe/testenv"
)

// subjectHeader is the first line of testdata/subject.py.
type subjectHeader struct {
	Version [2]int
	Magic   int
	Opcodes struct {
		Opcodes map[string]int
		Caches  map[string]byte
		Jumps   struct{ Forward, Backward, Absolute []int }
	}
}

// subjectLine is one of those after it: a code object, or, last, the failures.
type subjectLine struct {
	Name     string
	Code     *Code
	Failures []string
	Counts   map[string]int
}

// TestSupportedInterpreters asks every Python build for its magic number: CPython's from 3.8 to 3.15 are supported.
func TestSupportedInterpreters(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Every, func(t *testing.T, in testenv.Interpreter) {
		out, err := exec.CommandContext(t.Context(), in.Path, "-c", "import importlib.util, json, sys\n"+
			"print(json.dumps([sys.implementation.name, int.from_bytes(importlib.util.MAGIC_NUMBER[:2], 'little')]))").Output()
		if err != nil {
			t.Fatal(err)
		}
		var name string
		var magic int
		if err := json.Unmarshal(out, &[]any{&name, &magic}); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		err = Supported(Version{in.Major, in.Minor}, magic)
		if want := name == "cpython" && in.Minor >= 8; (err == nil) != want || !want && !errors.Is(err, ErrUnsupportedVersion) {
			t.Errorf("%s %d.%d with the magic number %d: %v", name, in.Major, in.Minor, magic, err)
		}
	})
}

// TestInterpreters rewrites the functions of the standard library (a part of it, but all of it for `make
// test-all`) and of every shape in testdata/shapes.py; testdata/subject.py checks the results on the
// interpreter itself.
func TestInterpreters(t *testing.T) {
	set := testenv.OnePerVersion(testenv.Every)
	if os.Getenv("SCA_PROBE_TEST_ALL") != "" {
		set = testenv.Every
	}
	testenv.EachInterpreter(t, set, func(t *testing.T, in testenv.Interpreter) {
		if in.Minor < 8 || strings.HasSuffix(in.Name, "-pypy") {
			return // refused, in TestSupportedInterpreters
		}
		if set == testenv.Every && !strings.HasSuffix(in.Name, "-shared") && !strings.HasSuffix(in.Name, "-forky") {
			return // these have the same bytecode and library, without its tests
		}
		testInterpreter(t, in.Path)
	})
}

func testInterpreter(t *testing.T, python string) {
	t.Parallel()
	stride, timeout, files := "40", 5*time.Minute, 10
	if os.Getenv("SCA_PROBE_TEST_ALL") != "" {
		stride, timeout, files = "1", 30*time.Minute, 500
	}
	// Opened here, so that go test runs again when only these have changed.
	for _, file := range []string{"testdata/subject.py", "testdata/shapes.py", python} {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, python, "testdata/subject.py", stride)
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
	failed := func(err error) {
		stdin.Close()
		cmd.Wait()
		t.Fatalf("%s testdata/subject.py: %v\n%s", python, err, stderr.String())
	}
	received, answers := json.NewDecoder(stdout), json.NewEncoder(stdin)
	var header subjectHeader
	if err := received.Decode(&header); err != nil {
		failed(err)
	}
	version := Version{header.Version[0], header.Version[1]}
	checkOpcodes(t, version, header)
	refused := 0
	var last subjectLine
	for {
		last = subjectLine{}
		if err := received.Decode(&last); err != nil {
			failed(err)
		}
		if last.Code == nil {
			break
		}
		original := cloneCode(*last.Code)
		rewritten, err := InsertPrologue(version, *last.Code)
		if !equalCode(original, *last.Code) {
			t.Errorf("%s: the input was written to", last.Name)
		}
		answer := &rewritten
		if err != nil {
			answer = nil
			if refused++; refused <= 20 {
				t.Errorf("%s: %v", last.Name, err)
			}
		}
		if err := answers.Encode(answer); err != nil {
			failed(err)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%s testdata/subject.py: %v\n%s", python, err, stderr.String())
	}
	if refused > 20 {
		t.Errorf("and %d more refused", refused-20)
	}
	for i, failure := range last.Failures {
		if i == 20 {
			t.Errorf("and %d more", len(last.Failures)-i)
			break
		}
		t.Error(failure)
	}
	t.Log(version, last.Counts)
	// What the subject is there to cover must have come up.
	atLeast := map[string]int{"files": files, "codes": 1300, "shapes": 75, "starts": 9000, "jumps": 5000,
		"jumps to the start": 1, "with EXTENDED_ARG in the prologue": 3}
	switch {
	case version.Minor < 11:
		atLeast["jumps that grew"] = 5
	case version.Minor >= 12:
		atLeast["handlers across the prologue"] = 50
		fallthrough
	default:
		atLeast["location entries split"] = 100
		atLeast["prologues on a line"] = 100
	}
	if version.Minor >= 15 {
		atLeast["generator expressions that create their iterator"] = 20
	}
	for what, n := range atLeast {
		if last.Counts[what] < n {
			t.Errorf("%d %s, want at least %d", last.Counts[what], what, n)
		}
	}
}

// checkOpcodes compares the table with the interpreter's own.
func checkOpcodes(t *testing.T, v Version, header subjectHeader) {
	t.Helper()
	ops := versions[v]
	if ops == nil {
		t.Fatalf("no table for %s", v)
	}
	if err := Supported(v, header.Magic); err != nil {
		t.Error(err)
	}
	names := header.Opcodes.Opcodes
	type named struct{ loadConst, unaryNegative, popTop, extendedArg, resume, genStart int }
	table := named{int(ops.loadConst), int(ops.unaryNegative), int(ops.popTop), int(ops.extendedArg), int(ops.resume), int(ops.genStart)}
	if got := (named{names["LOAD_CONST"], names["UNARY_NEGATIVE"], names["POP_TOP"], names["EXTENDED_ARG"], names["RESUME"],
		names["GEN_START"]}); table != got {
		t.Errorf("table %+v, interpreter %+v", table, got)
	}
	var known [256]bool
	for _, op := range names {
		known[op] = true
	}
	if ops.known != known {
		t.Errorf("known: table %v, interpreter %v", ops.known, known)
	}
	if v.Minor >= 11 {
		op := func(name string) byte { return byte(names[name]) }
		if want := before(op("COPY_FREE_VARS"), op("MAKE_CELL"), op("RETURN_GENERATOR"), op("POP_TOP")); !maps.Equal(ops.before, want) {
			t.Errorf("before RESUME: table %v, interpreter %v", ops.before, want)
		}
		var want map[byte]int
		if v.Minor >= 15 {
			want = map[byte]int{op("LOAD_FAST"): 1, op("LOAD_FAST_BORROW"): 1, op("GET_ITER"): 1, op("GET_AITER"): 0,
				op("RETURN_GENERATOR"): 1, op("POP_TOP"): -1}
		}
		if !maps.Equal(ops.beforeGenExpr, want) {
			t.Errorf("before the RESUME of a generator expression: table %v, interpreter %v", ops.beforeGenExpr, want)
		}
	}
	var caches [256]byte
	for opcode, n := range header.Opcodes.Caches {
		op, err := strconv.ParseUint(opcode, 10, 8)
		if err != nil {
			t.Fatal(err)
		}
		caches[op] = n
	}
	if ops.caches != caches {
		t.Errorf("caches: table %v, interpreter %v", ops.caches, caches)
	}
	for _, op := range []byte{ops.loadConst, ops.unaryNegative, ops.popTop} {
		if caches[op] != 0 {
			t.Errorf("opcode %d of the prologue has caches", op)
		}
	}
	var jumps [256]jump
	for kind, opcodes := range map[jump][]int{forward: header.Opcodes.Jumps.Forward, backward: header.Opcodes.Jumps.Backward,
		absolute: header.Opcodes.Jumps.Absolute} {
		for _, op := range opcodes {
			jumps[op] = kind
		}
	}
	if ops.jumps != jumps {
		t.Errorf("jumps: table %v, interpreter %v", ops.jumps, jumps)
	}
}

package bytecode

import (
	"encoding/json"
	"errors"
	"os/exec"
	"path/filepath"
	"testing"

	"sca-probe/testenv"
)

// function is a code object as testenv/subjects/transform.py exchanges it.
type function struct {
	Name           string `json:"name"`
	Bytecode       []byte `json:"co_code"`
	NumConsts      int    `json:"consts"`
	StackSize      int    `json:"co_stacksize"`
	LineTable      []byte `json:"co_linetable"`
	ExceptionTable []byte `json:"co_exceptiontable"`
}

// TestEveryFunctionOfTheStandardLibrary patches thousands of functions and has Python compare each
// with its original: instructions, jump targets, lines, positions and exception table. It then runs
// functions of every shape, and compares results, tracebacks and trace events.
func TestEveryFunctionOfTheStandardLibrary(t *testing.T) {
	testenv.EachInterpreter(t, func(t *testing.T, in testenv.Interpreter) {
		cmd := exec.Command(in.Path, filepath.Join(testenv.Root(), "testenv", "subjects", "transform.py"))
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
		from, to := json.NewDecoder(stdout), json.NewEncoder(stdin)
		var offer struct {
			Version   [2]int     `json:"version"`
			Functions []function `json:"functions"`
		}
		if err := from.Decode(&offer); err != nil {
			t.Fatal(err)
		}
		version := Version{offer.Version[0], offer.Version[1]}
		patched := make([]*function, len(offer.Functions))
		refused := 0
		for i, f := range offer.Functions {
			code, err := InsertPrologue(version, Code{f.Bytecode, f.NumConsts, f.StackSize, f.LineTable, f.ExceptionTable})
			if err != nil {
				refused++
				t.Errorf("%s: %v", f.Name, err)
				continue
			}
			patched[i] = &function{f.Name, code.Bytecode, code.NumConsts, code.StackSize, code.LineTable, code.ExceptionTable}
		}
		if err := to.Encode(patched); err != nil {
			t.Fatal(err)
		}
		stdin.Close()
		var verdict struct {
			Compared int      `json:"compared"`
			Called   int      `json:"called"`
			Wrong    []string `json:"wrong"`
		}
		if err := from.Decode(&verdict); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		t.Logf("%d functions compared, %d called, %d refused", verdict.Compared, verdict.Called, refused)
		if verdict.Compared < 3000 || verdict.Called < 15 {
			t.Errorf("%d functions compared and %d called: that is too few to mean anything", verdict.Compared, verdict.Called)
		}
		for _, wrong := range verdict.Wrong {
			t.Error(wrong)
		}
	})
}

func TestInsertPrologueRefuses(t *testing.T) {
	whole := Code{Bytecode: []byte{151, 0, 100, 0, 83, 0}, NumConsts: 1, LineTable: []byte{0xf0, 3, 1, 1, 1, 0xd8, 11, 15}}
	if _, err := InsertPrologue(Version{3, 11}, whole); err != nil {
		t.Fatalf("the whole function is refused: %v", err)
	}
	change := func(f func(*Code)) Code {
		c := whole
		f(&c)
		return c
	}
	cases := map[string]Code{
		"no bytecode":            change(func(c *Code) { c.Bytecode = nil }),
		"half a unit":            change(func(c *Code) { c.Bytecode = c.Bytecode[:5] }),
		"no RESUME":              change(func(c *Code) { c.Bytecode = []byte{9, 0, 83, 0} }),
		"a RESUME after a yield": change(func(c *Code) { c.Bytecode = []byte{151, 1, 83, 0} }),
		"a jump out of the code": change(func(c *Code) { c.Bytecode = []byte{151, 0, 110, 9, 83, 0} }),
		"a jump to the start":    change(func(c *Code) { c.Bytecode = []byte{151, 0, 140, 2, 83, 0} }),
		"lines that end early":   change(func(c *Code) { c.LineTable = nil }),
		"lines without a head":   change(func(c *Code) { c.LineTable = []byte{0x70} }),
		"handlers cut short":     change(func(c *Code) { c.ExceptionTable = []byte{0x81, 1} }),
		"handlers unmarked":      change(func(c *Code) { c.ExceptionTable = []byte{1, 1, 1, 1} }),
		"a handler at the start": change(func(c *Code) { c.ExceptionTable = []byte{0x81, 1, 0, 1} }),
	}
	for name, c := range cases {
		if _, err := InsertPrologue(Version{3, 11}, c); !errors.Is(err, ErrUnknownShape) {
			t.Errorf("%s: %v, want ErrUnknownShape", name, err)
		}
	}
	if _, err := InsertPrologue(Version{3, 7}, whole); !errors.Is(err, ErrUnsupportedVersion) {
		t.Errorf("3.7: %v, want ErrUnsupportedVersion", err)
	}
}

func FuzzInsertPrologue(f *testing.F) {
	f.Add(uint8(11), []byte{151, 0, 100, 0, 83, 0}, []byte{0xf0, 3, 1, 1, 1, 0xd8, 11, 15}, []byte{0x81, 1, 2, 1}, uint32(1))
	f.Add(uint8(14), []byte{34, 0, 31, 0, 128, 0, 75, 1}, []byte{0xf8}, []byte{0xc1, 1, 2, 2, 1}, uint32(70000))
	f.Fuzz(func(t *testing.T, minor uint8, code, lines, exceptions []byte, consts uint32) {
		c := Code{Bytecode: code, NumConsts: int(consts), LineTable: lines, ExceptionTable: exceptions}
		out, err := InsertPrologue(Version{3, int(minor)}, c)
		if err != nil {
			return
		}
		n := len(out.Bytecode) - len(code)
		if n <= 0 || n%2 != 0 || out.NumConsts != c.NumConsts+1 {
			t.Errorf("%d bytes inserted, %d constants of %d", n, out.NumConsts, c.NumConsts)
		}
	})
}

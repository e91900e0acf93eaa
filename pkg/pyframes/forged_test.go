package pyframes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"sca-probe/pkg/rc"
	"sca-probe/testenv"
)

// forgery is objects of every kind that is read, of which no other object needs anything, and what to
// change memory with.
const forgery = `
import ctypes, types
def word(address, value=None):
    at = ctypes.c_uint64.from_address(address)
    before = at.value
    if value is not None: at.value = value & (1 << 64) - 1
    return before
def victim(x): return lambda: [x, "one of its", "constants", 12.5, b"and more", 1e100, "of them", "here"]
class Victim:
    def method(self): pass
forged = Victim()
module = sys.modules["forged"] = types.ModuleType("forged")
module.victim, module.Victim, module.forged = victim, Victim, forged
inner, = [c for c in victim.__code__.co_consts if type(c) is types.CodeType]
endless = ctypes.create_string_buffer(b"x" * (1 << 21), 1 << 21)
`

// startForger starts a subject that can change its own memory, and opens it.
func startForger(t *testing.T, in testenv.Interpreter) (*testenv.Subject, *Process) {
	t.Helper()
	s := testenv.StartSubject(t, in)
	s.Exec(forgery)
	p, err := OpenProcess(s.PID())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return s, p
}

// TestForgedObjects changes a living interpreter's objects into what no interpreter makes. The answer on
// them comes soon and is no claim about anything else, and whatever else there is keeps being found.
func TestForgedObjects(t *testing.T) {
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Observer), func(t *testing.T, in testenv.Interpreter) {
		s, p := startForger(t, in)
		l := p.image.layout
		number := func(expr string) uint64 {
			n, err := s.Eval(expr).(json.Number).Int64()
			if err != nil {
				t.Fatal(err)
			}
			return uint64(n)
		}
		pointer := func(at uint64) uint64 { return number(fmt.Sprintf("word(%d)", at)) }
		code, inner, class := number("id(victim.__code__)"), number("id(inner)"), number("id(Victim)")
		constants := pointer(inner + l.codeConsts)
		namespace := pointer(number("id(module)") + moduleDict)
		keys := pointer(namespace + l.dictKeys)
		state := pointer(p.image.listHead + l.interpretersHead)
		type change struct{ at, value uint64 }
		var itself []change
		for i := range number("len(inner.co_consts)") {
			itself = append(itself, change{constants + l.tupleItems + 8*i, inner})
		}
		for name, c := range map[string]struct {
			changes []change
			target  string // that cannot be what it was
		}{
			"constants that are the code itself":  {itself, ""},
			"a tuple of a trillion items":         {[]change{{pointer(code+l.codeConsts) + l.tupleSize, 1 << 40}}, "victim.<locals>.<lambda>"},
			"a tuple of less than no items":       {[]change{{pointer(code+l.codeConsts) + l.tupleSize, 1<<64 - 5}}, "victim.<locals>.<lambda>"},
			"a str as long as the address space":  {[]change{{pointer(code+l.codeName) + l.strLength, 1 << 62}}, "victim"},
			"a file name that is no str":          {[]change{{code + l.codeFilename, class}}, "victim"},
			"a name at no address":                {[]change{{code + l.codeName, 0xdead}}, "victim"},
			"a code object that is none":          {[]change{{number("id(victim)") + l.functionCode, number("id(victim)")}}, "victim"},
			"a class that is its own base":        {[]change{{class + typeBase, class}}, "forged.missing"},
			"an endless mro":                      {[]change{{pointer(class+typeMRO) + l.tupleSize, 1 << 50}}, "Victim.method"},
			"a type's name without an end":        {[]change{{class + l.typeName, number("ctypes.addressof(endless)")}}, "forged.missing"},
			"a dict of more entries than it can":  {[]change{{keys + l.keys.entries, 1 << 40}}, "victim"},
			"a dict whose keys are itself":        {[]change{{namespace + l.dictKeys, namespace}}, "victim"},
			"a dict without memory":               {[]change{{namespace + l.dictKeys, 1<<47 - pageSize}}, "victim"},
			"interpreters that follow themselves": {[]change{{state + l.interpNext, state}}, "victim"},
		} {
			t.Run(name, func(t *testing.T) {
				var poke, heal strings.Builder
				for _, c := range c.changes {
					fmt.Fprintf(&poke, "word(%d, %d)\n", c.at, c.value)
					fmt.Fprintf(&heal, "word(%d, %d)\n", c.at, pointer(c.at))
				}
				s.Exec(poke.String())
				defer s.Exec(heal.String())
				began := time.Now()
				if c.target != "" {
					if f, err := p.Resolve(rc.Target{Module: "forged", QualName: c.target}); err == nil || errors.Is(err, ErrNoProcess) {
						t.Errorf("%s resolves to %+v, %v", c.target, f, err)
					}
				}
				found := map[string]bool{}
				for f, err := range p.Functions(context.Background(), &FunctionScan{Match: func(module string, _ Code) bool { return module == "shapes" || module == "__main__" }}) {
					if err != nil {
						t.Fatal(err)
					}
					found[f.QualName] = true
				}
				for _, name := range []string{"plain", "never", "Shapes.method"} {
					if !found[name] {
						t.Errorf("%s is not found any more", name)
					}
				}
				// Otherwise it takes some tens of milliseconds.
				if took := time.Since(began); took > 20*time.Second {
					t.Errorf("the answers took %v", took)
				}
			})
		}
		for _, target := range []string{"victim", "Victim.method", "victim.<locals>.<lambda>"} {
			if _, err := p.Resolve(rc.Target{Module: "forged", QualName: target}); err != nil {
				t.Errorf("as it was: %v", err)
			}
		}
	})
}

// TestForgedFunctionsEverywhere has memory full of functions that pass for living ones, each with code
// objects within each other that take billions of steps. The whole answer is refused before it has taken long.
func TestForgedFunctionsEverywhere(t *testing.T) {
	budget := scanBudget
	scanBudget = 1 << 30
	defer func() { scanBudget = budget }()
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Observer), func(t *testing.T, in testenv.Interpreter) {
		if in.Minor != 8 && in.Minor != 11 && in.Minor != 14 {
			t.Skip("three builds are enough")
		}
		s, p := startForger(t, in)
		l := p.image.layout
		s.Exec(fmt.Sprintf(`
head, size, count, consts, items = %d, sys.getsizeof(victim) + 64 & ~15, 5000, %d, %d
chain, saved = [inner.replace(co_name="link") for _ in range(12)], []
for one, next in zip(chain, chain[1:]):
    at = word(id(one) + consts) + items
    saved += [(at + 8 * i, word(at + 8 * i, id(next))) for i in range(len(inner.co_consts))]
at = word(id(victim.__code__) + consts) + items + 8 * victim.__code__.co_consts.index(inner)
saved.append((at, word(at, id(chain[0]))))
flood = ctypes.create_string_buffer(size * count + 16)
start = ctypes.addressof(flood) + 15 & ~15
for i in range(count):
    at = start + i * size
    ctypes.memmove(at, id(victim) - head, size - 16)
    word(at, at), word(at + 8, at)
`, l.gcHead, l.codeConsts, l.tupleItems))
		began := time.Now()
		var last error
		for _, err := range p.Functions(context.Background(), nil) {
			last = err
		}
		if !errors.Is(last, ErrCorrupt) || !strings.Contains(last.Error(), "take more to read than those of any program") {
			t.Errorf("%v, want a refusal", last)
		}
		if took := time.Since(began); took > time.Minute { // some seconds, if it is bounded
			t.Errorf("the answer took %v", took)
		}
		t.Logf("refused after %v", time.Since(began))
		s.Exec("for at, item in saved: word(at, item)")
	})
}

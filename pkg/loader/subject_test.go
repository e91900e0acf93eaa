package loader

import (
	"encoding/json"
	"fmt"
	"strconv"
	"testing"

	"sca-probe/pkg/pyframes/evalloop"
	"sca-probe/testenv"
)

// A probed is a subject whose eval loop can be probed. Where its code objects have what, Python is
// asked, so that these tests stand on their own.
type probed struct {
	t *testing.T
	*testenv.Subject
	binary string
	table  *evalloop.Table
	layout CodeLayout
}

// layoutOf finds the offsets by what a code object is known to hold.
const layoutOf = `
def _layout():
    import ctypes, sys
    line = 123457
    module = compile("\n" * (line - 2) + "class Outer_1:\n  async def method_1(self, *args, **kwargs): yield", "file_1", "exec")
    outer, = [c for c in module.co_consts if hasattr(c, "co_code")]
    code, = [c for c in outer.co_consts if hasattr(c, "co_code")]
    raw = ctypes.string_at(id(code), sys.getsizeof(code))
    def find(value, size):
        at = [i for i in range(16, len(raw) - 7, size) if raw[i:i + size] == value.to_bytes(size, "little")]
        assert len(at) == 1, at
        return at[0]
    return [find(id(code.co_name), 8), find(code.co_firstlineno, 4),
            find(id(code.co_qualname), 8) if hasattr(code, "co_qualname") else 0,
            find(id(code.co_filename), 8), find(code.co_flags, 4), 16, 32, sys.getsizeof("") - 1]

def _eval_loop():
    maps = [l.split()[-1] for l in open("/proc/self/maps") if "r-xp" in l]
    libs = [m for m in maps if "/libpython3" in m]
    return (libs or maps)[0]
`

func startProbed(t *testing.T, in testenv.Interpreter, opts ...testenv.SubjectOption) *probed {
	t.Helper()
	p := &probed{t: t, Subject: testenv.StartSubject(t, in, opts...)}
	p.Exec(layoutOf)
	offsets := p.numbers("_layout()")
	p.layout = CodeLayout{
		Name: uint32(offsets[0]), FirstLine: uint32(offsets[1]), QualName: uint32(offsets[2]), Filename: uint32(offsets[3]),
		Flags: uint32(offsets[4]), StrLength: uint32(offsets[5]), StrState: uint32(offsets[6]), StrASCII: uint32(offsets[7]),
	}
	p.binary = fmt.Sprintf("/proc/%d/root%s", p.PID(), p.Eval("_eval_loop()"))
	table, err := evalloop.Find(p.binary, in.Major, in.Minor)
	if err != nil {
		t.Fatal(err)
	}
	p.table = table
	return p
}

// numbers evaluates an expression whose value is a list of numbers.
func (p *probed) numbers(expr string) []uint64 {
	p.t.Helper()
	var list []uint64
	for _, value := range p.Eval(expr).([]any) {
		n, err := strconv.ParseUint(value.(json.Number).String(), 10, 64)
		if err != nil {
			p.t.Fatal(err)
		}
		list = append(list, n)
	}
	return list
}

// codeOf asks Python about a code object.
func (p *probed) codeOf(expr string) Code {
	p.t.Helper()
	n := p.numbers(fmt.Sprintf("[id(%[1]s), id(%[1]s.co_name), %[1]s.co_firstlineno]", expr))
	return Code{n[0], n[1], uint32(n[2])}
}

// probe counts the given code objects until the test ends.
func (p *probed) probe(codes ...Code) *EvalLoopCounter {
	p.t.Helper()
	counter, err := NewEvalLoopCounter(p.PID(), p.binary, p.table, p.layout, codes)
	if err != nil {
		p.t.Fatal(err)
	}
	p.closeAtEnd(counter)
	return counter
}

func (p *probed) closeAtEnd(c interface{ Close() error }) {
	p.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			p.t.Errorf("close: %v", err)
		}
	})
}

// counts returns what a counter counted, and fails if it lost anything.
func counts(t *testing.T, c *EvalLoopCounter) map[Code]uint64 {
	t.Helper()
	starts, err := c.Starts()
	if err != nil {
		t.Fatal(err)
	}
	lost, err := c.Losses()
	if err != nil {
		t.Fatal(err)
	}
	if lost.Any() {
		t.Errorf("of the starts, %s", lost)
	}
	return starts
}

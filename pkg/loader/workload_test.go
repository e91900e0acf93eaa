package loader

import (
	"encoding/json"
	"fmt"
	"strconv"
	"testing"

	"sca-probe/testenv"
)

// workload runs much of the standard library that is written in Python, the same way each time.
// count_starts lets CPython itself count: sys.monitoring's PY_START from 3.12 on, before it the
// profiler's call events at a RESUME whose argument says that it is a start, or up to 3.10 in a frame
// that has run no instruction yet.
const workload = `
import sys, ast, copy, difflib, fractions, functools, html.parser, inspect, io, itertools, json, pickle, pprint
import re, string, textwrap, tokenize, contextlib, collections, _pydecimal, operator, dis

SOURCE = inspect.getsource(textwrap) + inspect.getsource(string)

class Parser(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen = []
    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, attrs))
    def handle_data(self, data):
        self.seen.append(data)

@contextlib.contextmanager
def block(log):
    log.append(1)
    yield log
    log.append(2)

@functools.singledispatch
def kind(value):
    return "object"

@kind.register(int)
def kind_of_int(value):
    return "int"

def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)

def walk(n):
    if n:
        yield from walk(n - 1)
        yield n

class Await:
    def __await__(self):
        yield 1
        return 2

async def leaf():
    return await Await()

async def tree(n):
    if not n:
        return await leaf()
    return await tree(n - 1) + await tree(n - 1)

def run(coro):
    try:
        while True:
            coro.send(None)
    except StopIteration as stop:
        return stop.value

def workload():
    tree_of = ast.parse(SOURCE)
    getattr(ast, "unparse", ast.dump)(tree_of) # 3.9 brought unparse
    copy.deepcopy(ast.dump(tree_of)[:2000])
    list(tokenize.generate_tokens(io.StringIO(SOURCE).readline))
    re.purge()
    for pattern in r"(a|b)*c{2,3}[^x-z]\d+", r"(?P<n>\w+)\s*=\s*(?P=n)?", r"(?i:x(?=y)|z(?!w))+?$":
        re.compile(pattern).sub(lambda m: m.group(0), "abcc1 n = n xyz" * 5)
    data = {"a": [1, 2.5, None, True, {"b": ["x" * 3] * 4}], "c": {str(i): i for i in range(40)}}
    json.loads(json.dumps(data, indent=2, sort_keys=True))
    list(json.JSONEncoder(indent=1).iterencode(data))
    pickle._loads(pickle._dumps(data))
    pprint.pformat(data, width=30)
    copy.deepcopy(data)
    textwrap.fill(textwrap.dedent("  some words " * 60), 40)
    list(difflib.unified_diff(SOURCE.splitlines()[:80], SOURCE.splitlines()[20:90]))
    sum((fractions.Fraction(1, i) for i in range(1, 40)), fractions.Fraction(0))
    _pydecimal.Decimal(2).sqrt() * _pydecimal.Decimal("1.5") ** 7
    parser = Parser()
    parser.feed("<p class=x>some <b>text</b> &amp; more<br/></p>" * 10)
    string.Template("$a ${b} $$").substitute(a=1, b=2)
    for value in 1, "x", 2.0:
        kind(value)
    with block([]) as log:
        log.append(3)
    fib(15)
    sum(walk(30))
    run(tree(6))
    sorted(range(50), key=lambda x: -x)
    collections.ChainMap({1: 2}, {3: 4})[3]
    list(itertools.accumulate(range(30), lambda a, b: a + b))
    dis.Bytecode(fib).dis()

def window():
    for _ in range(3):
        workload()
    json.loads("{}") # the subject does this for the request that runs the workload
    json.dumps({})

def count_starts():
    counts = collections.Counter()
    if sys.version_info >= (3, 12):
        sys.monitoring.use_tool_id(3, "truth")
        sys.monitoring.register_callback(3, sys.monitoring.events.PY_START, lambda code, at: counts.update((code,)))
        sys.monitoring.set_events(3, sys.monitoring.events.PY_START)
        window()
        sys.monitoring.set_events(3, 0)
        sys.monitoring.free_tool_id(3)
    else:
        def profile(frame, event, arg):
            if event != "call":
                return
            if sys.version_info >= (3, 11):
                started = not frame.f_code.co_code[frame.f_lasti + 1] & 3
            else:
                started = frame.f_lasti == -1
            if started:
                counts[frame.f_code] += 1
        sys.setprofile(profile)
        window()
        sys.setprofile(None)
    for code in window.__code__, collections.Counter.update.__code__: # called by counting
        counts.pop(code, None)
    return counts

window()
TRUTH = count_starts()
`

// TestEvalLoopCounterAgreesWithPython compares with what CPython counts itself, over 250 code
// objects: cold and warm handlers, and every copy that an optimiser made of them.
func TestEvalLoopCounterAgreesWithPython(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		p := startProbed(t, in)
		p.Exec(workload)
		want, names := map[Code]uint64{}, map[Code]string{}
		var codes []Code
		var starts uint64
		rows := p.Eval("[[id(c), id(c.co_name), c.co_firstlineno, n, c.co_name] for c, n in TRUTH.items()]").([]any)
		for _, row := range rows {
			fields := row.([]any)
			number := func(i int) uint64 {
				n, err := strconv.ParseUint(fields[i].(json.Number).String(), 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
			code := Code{number(0), number(1), uint32(number(2))}
			codes = append(codes, code)
			want[code], names[code] = number(3), fmt.Sprint(fields[4])
			starts += want[code]
		}
		if len(codes) < 250 || starts < 30_000 {
			t.Fatalf("%d code objects with %d starts are too few to tell", len(codes), starts)
		}
		all, err := NewEvalLoopCounterOfAll(p.PID(), p.binary, p.table, p.layout, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer all.Close()
		chosen := p.probe(codes...)
		p.Exec("for _ in range(3): workload()")
		gotAll, gotChosen := counts(t, all), counts(t, chosen)
		for code, n := range want {
			if gotAll[code] != n || gotChosen[code] != n {
				t.Errorf("%s: %d starts counted with all, %d when chosen; CPython counts %d", names[code], gotAll[code], gotChosen[code], n)
			}
		}
		t.Logf("%d starts of %d code objects at %d sites", starts, len(codes), len(p.table.Sites))
	})
}

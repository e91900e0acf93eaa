"""Hands code objects to the transform and checks what comes back, on the interpreter itself.

One JSON line out (codes), one in (the same, rewritten), one out (failures). What is expected of a
rewritten code object is worked out here from dis and co_positions of the original, not from the transform.
"""
import ast
import base64
import collections
import dis
import importlib.util
import json
import opcode
import sys
import traceback
import types

import shapes

MODULES = """_pydecimal argparse ast asyncio.base_events asyncio.streams asyncio.tasks collections concurrent.futures.thread
configparser contextlib dataclasses difflib enum functools http.client importlib.metadata inspect logging multiprocessing.pool
pickle pprint subprocess tarfile threading tokenize traceback typing unittest.mock urllib.request""".split()

HOOK_CALL = {
    11: ["PUSH_NULL", "LOAD_CONST", "LOAD_CONST", "PRECALL", "CALL", "POP_TOP"],
    12: ["PUSH_NULL", "LOAD_CONST", "LOAD_CONST", "CALL", "POP_TOP"],
    13: ["LOAD_CONST", "PUSH_NULL", "LOAD_CONST", "CALL", "POP_TOP"],
    14: ["LOAD_CONST", "PUSH_NULL", "LOAD_CONST", "CALL", "POP_TOP"],
}[sys.version_info[1]]


def nested(code):
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from nested(const)


def flattened():
    """Code whose instructions all have one location, so that location entries run together."""
    with open(shapes.__file__) as f:
        tree = ast.parse(f.read())
    for node in ast.walk(tree):
        if hasattr(node, "lineno"):
            node.lineno = node.end_lineno = 1
            node.col_offset = node.end_col_offset = 0
    return compile(tree, "flattened", "exec")


def varint(n):
    out = []
    while n > 63:
        out.append(n & 63 | 64)
        n >>= 6
    return out + [n]


def svarint(n):
    return varint(-n << 1 | 1 if n < 0 else n << 1)


def relocated(code):
    """The code with a location table of entries of one kind and length, for each of them."""
    kinds = [(kind, [0x25]) for kind in range(10)]
    kinds += [(kind, [5, 99]) for kind in (10, 11, 12)]
    kinds += [(13, svarint(step)) for step in (0, 1, -3, 5000)]
    kinds += [(14, svarint(step) + varint(end) + varint(1000) + varint(7)) for step in (0, -3, 5000) for end in (0, 80)]
    kinds += [(15, [])]
    units = len(code.co_code) // 2
    for kind, payload in kinds:
        for length in (1, 2, 3, 5, 8):
            table = []
            for at in range(0, units, length):
                table += [0x80 | kind << 3 | min(length, units - at) - 1] + payload
            yield code.replace(co_linetable=bytes(table))


def collect():
    for name in MODULES:
        code = importlib.util.find_spec(name).loader.get_code(name)
        for c in nested(code):
            yield name + ":" + c.co_qualname, c
    for c in nested(flattened()):
        yield "flattened:" + c.co_qualname, c
    for make in (shapes.plain, shapes.closure, shapes.generator, shapes.generator_try_first, shapes.coroutine):
        for c in relocated(make()[0].__code__):
            yield "relocated:%s:%s" % (c.co_qualname, c.co_linetable[:3].hex()), c


def encode(code):
    b64 = lambda b: base64.b64encode(b).decode()
    return {"Bytecode": b64(code.co_code), "NumConsts": len(code.co_consts), "StackSize": code.co_stacksize,
            "LineTable": b64(code.co_linetable), "ExceptionTable": b64(code.co_exceptiontable)}


def rewritten(code, fields, hook):
    d = base64.b64decode
    assert fields["NumConsts"] == len(code.co_consts) + 1
    return code.replace(co_code=d(fields["Bytecode"]), co_consts=code.co_consts + (hook,),
                        co_stacksize=fields["StackSize"], co_linetable=d(fields["LineTable"] or ""),
                        co_exceptiontable=d(fields["ExceptionTable"] or ""))


failures = []
counts = collections.Counter()


def same(name, what, want, got):
    if want != got:
        failures.append("%s: %s: want %.500r, got %.500r" % (name, what, want, got))
    return want == got


def handlers(code):
    """For each code unit, what handles an exception there: target, depth, lasti."""
    found = [None] * (len(code.co_code) // 2)
    for e in dis._parse_exception_table(code):
        for unit in range(e.start // 2, e.end // 2):
            found[unit] = (e.target // 2, e.depth, e.lasti)
    return found


def lines(code):
    found = []
    for start, end, line in code.co_lines():
        found += [line] * ((end - start) // 2)
    return found


def check_static(name, old, new):
    """Compares both code objects as the interpreter reads them: new is old with the prologue in it."""
    was, now = list(dis.get_instructions(old)), list(dis.get_instructions(new))
    resume = next(i for i, ins in enumerate(was) if ins.opname == "RESUME")
    at = was[resume].offset + 2
    n = len(new.co_code) - len(old.co_code)
    moved = lambda offset: offset if offset < at else offset + n

    prologue = [ins for ins in now if at <= ins.offset < at + n]
    visible = [ins for ins in prologue if ins.opname not in ("EXTENDED_ARG", "CACHE")]
    same(name, "prologue", HOOK_CALL, [ins.opname for ins in visible])
    args = {"LOAD_CONST": len(old.co_consts), "PRECALL": 1, "CALL": 1}
    for ins in visible:
        same(name, ins.opname + " of the prologue", args.get(ins.opname), ins.arg)
        if ins.opname == "LOAD_CONST" and ins.argval is not new.co_consts[-1]:
            failures.append(name + ": the prologue does not load the hook")
    if any(ins.is_jump_target for ins in prologue):
        failures.append(name + ": a jump lands in the prologue")

    rest = [ins for ins in now if not at <= ins.offset < at + n]
    same(name, "number of instructions", len(was), len(rest))
    for a, b in zip(was, rest):
        jump = a.opcode in dis.hasjrel
        counts["jumps"] += jump
        counts["jumps to the start"] += jump and a.argval == at
        value = moved(a.argval) if jump else a.argval
        want = (a.opname, a.arg, moved(a.offset), a.is_jump_target, a.positions)
        if not same(name, "instruction", want, (b.opname, b.arg, b.offset, b.is_jump_target, b.positions)):
            break
        # Constants may be what equals nothing, not even itself: a NaN.
        if b.argval is not value and not same(name, "operand of " + a.opname, value, b.argval):
            break

    unit, more = at // 2, n // 2
    positions = list(old.co_positions())
    same(name, "co_positions", positions[:unit] + [(None,) * 4] * more + positions[unit:], list(new.co_positions()))
    was_lines = lines(old)
    same(name, "co_lines", was_lines[:unit] + [None] * more + was_lines[unit:], lines(new))

    shifted = [h and (moved(h[0] * 2) // 2, *h[1:]) for h in handlers(old)]
    same(name, "exception table", shifted[:unit] + shifted[unit - 1:unit] * more + shifted[unit:], handlers(new))
    # The hook, a NULL and the argument stand on the empty stack.
    same(name, "co_stacksize", max(3, old.co_stacksize), new.co_stacksize)
    counts["codes"] += 1
    counts["handlers across the prologue"] += shifted[unit - 1] is not None
    counts["location entries split"] += len(new.co_linetable) - len(old.co_linetable) > (more + 7) // 8
    counts["with EXTENDED_ARG in the prologue"] += len(prologue) > len(visible) and any(
        ins.opname == "EXTENDED_ARG" for ins in prologue)


def outcome(drive):
    try:
        return "returned", repr(drive())
    except BaseException as e:
        chain = []
        while e is not None:
            frames = traceback.extract_tb(e.__traceback__)
            chain.append((repr(e), [(f.name, f.lineno, f.end_lineno, f.colno, f.end_colno) for f in frames]))
            e = e.__cause__ or e.__context__
        return "raised", chain


def traced(drive):
    events = []

    def trace(frame, event, arg):
        if frame.f_code.co_filename != shapes.__file__:
            return None
        arg = repr(arg[1]) if event == "exception" else None
        events.append((event, frame.f_code.co_name, frame.f_lineno, arg))
        return trace

    def run():
        sys.settrace(trace)
        try:
            return drive()
        finally:
            sys.settrace(None)

    return outcome(run), events


def monitored(drive):
    if not hasattr(sys, "monitoring"):
        return None
    seen = []
    m = sys.monitoring
    names = ["PY_START", "PY_RESUME", "PY_RETURN", "PY_YIELD", "PY_UNWIND", "PY_THROW", "LINE", "RAISE", "EXCEPTION_HANDLED"]
    m.use_tool_id(1, "test")
    for name in names:
        def record(code, where, value=None, name=name):
            if code.co_filename == shapes.__file__:
                seen.append((name, code.co_name, where if name == "LINE" else None))
        m.register_callback(1, getattr(m.events, name), record)
    m.set_events(1, sum(getattr(m.events, name) for name in names))
    try:
        result = outcome(drive)
    finally:
        m.set_events(1, 0)
        m.free_tool_id(1)
    return result, seen


def check_behaviour(name, make, fields):
    """Drives a shape as it is and with the prologue: plainly, traced and monitored."""
    for way in (outcome, traced, monitored):
        function, starts, drive = make()
        # Both run three times, first cold and then specialised.
        want = [way(drive) for _ in range(3)]
        function, starts, drive = make()
        calls = []
        hook = calls.append
        function.__code__ = rewritten(function.__code__, fields, hook)
        same(name, way.__name__, want, [way(drive) for _ in range(3)])
        if way is not monitored or hasattr(sys, "monitoring"):
            same(name, "hook calls, " + way.__name__, 3 * starts, len(calls))
        if not all(got is hook for got in calls):
            failures.append(name + ": the hook's argument is not the hook")
        counts["hook calls"] += len(calls)
    counts["shapes"] += 1


def check_raising_hook(name, make, fields):
    """What a hook raises is raised by the function, at no line; a generator turns StopIteration into RuntimeError."""
    def hook(itself):
        raise StopIteration("from the hook")

    function, starts, drive = make()
    function.__code__ = rewritten(function.__code__, fields, hook)
    how, chain = outcome(drive)
    kind = "RuntimeError('generator raised StopIteration')" if function.__code__.co_flags & 0x20 else "StopIteration('from the hook')"
    same(name, "raising hook", ("raised", kind), (how, chain[0][0]))


def opcodes():
    """The instruction set, of what the compiler emits: no pseudo, specialised or instrumented opcodes."""
    real = {name: op for name, op in opcode.opmap.items() if op < 256 and not name.startswith("INSTRUMENTED_")}
    entries = opcode._inline_cache_entries
    caches = {name: entries.get(name, 0) if isinstance(entries, dict) else entries[op] for name, op in real.items()}
    return {
        "opcodes": real,
        "caches": {str(real[name]): n for name, n in caches.items() if n},
        # dis.py, _is_backward_jump
        "jumps": {str(op): "JUMP_BACKWARD" in name or name == "END_ASYNC_FOR"
                  for name, op in real.items() if op in opcode.hasjrel},
        "absolute": [name for name, op in real.items() if op in opcode.hasjabs],
    }


def main():
    codes = list(collect())
    made = [(name, make) for name, make in shapes.SHAPES.items()]
    everything = codes + [("shapes:" + name, make()[0].__code__) for name, make in made]
    json.dump({"version": sys.version_info[:2], "opcodes": opcodes(),
               "codes": [{"name": name, "code": encode(code)} for name, code in everything]}, sys.stdout)
    print(flush=True)
    answer = json.loads(sys.stdin.readline())
    hook = [].append
    for (name, code), fields in zip(everything, answer):
        check_static(name, code, rewritten(code, fields, hook))
    # Code that is wrong already might run for ever.
    for (name, make), fields in zip(made, answer[len(codes):] if not failures else []):
        check_behaviour("shapes:" + name, make, fields)
        if name in ("plain", "closure", "try_first", "generator", "generator_try_first", "generator_stop_iteration"):
            check_raising_hook("shapes:" + name, make, fields)
    print(json.dumps({"failures": failures, "counts": counts}), flush=True)


main()

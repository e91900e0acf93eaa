"""Hands code objects to the transform and checks what comes back, on the interpreter itself.

subject.py STRIDE takes the functions of every STRIDEth file of the interpreter's standard library. It speaks lines of JSON:
one out about the interpreter; one out for each code object, answered by one in, the same rewritten; one out (failures). What
is expected of a rewritten code object is worked out here from dis and the line tables of the original, not from the transform.
"""
import ast
import base64
import collections
import dis
import importlib.util
import json
import opcode
import os
import sys
import traceback
import types
import warnings

import shapes

VERSION = sys.version_info[:2]
LINE_TABLE = "co_lnotab" if VERSION < (3, 10) else "co_linetable"
PROLOGUE = ["LOAD_CONST", "UNARY_NEGATIVE", "POP_TOP"]


class Hook:
    """What the prologue negates."""

    starts = 0

    def __neg__(self):
        self.starts += 1
        return self


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
    """The code with line tables of entries of one kind and length, for each of them."""
    if VERSION >= (3, 11):
        kinds = [(kind, [0x25]) for kind in range(10)]
        kinds += [(kind, [5, 99]) for kind in (10, 11, 12)]
        kinds += [(13, svarint(step)) for step in (0, 1, -3, 5000)]
        kinds += [(14, svarint(step) + varint(end) + varint(1000) + varint(7)) for step in (0, -3, 5000) for end in (0, 80)]
        kinds += [(15, [])]
        entry = lambda kind, units: [0x80 | kind[0] << 3 | units - 1] + kind[1]
        lengths = (1, 2, 3, 5, 8)
    else:
        kinds = [(step,) for step in (1, 127, 255, 129, 0)] + [(0, 1), (1, 0), (127, 1), (255, 127), (2, 254, 0)]
        if VERSION == (3, 10):
            kinds += [(128,), (128, 1), (1, 128), (127, 128, 0)]
        entry = lambda kind, units: [n for step in kind[1:] for n in (0, step)] + [2 * units, kind[0]]
        lengths = (1, 2, 3, 5, 8, 127)
    units = len(code.co_code) // 2
    # Lines far enough on that none becomes negative.
    code = code.replace(co_firstlineno=100000)
    for kind in kinds:
        for length in lengths:
            table = []
            for at in range(0, units, length):
                table += entry(kind, min(length, units - at))
            yield code.replace(**{LINE_TABLE: bytes(table)})


def library(stride):
    """The modules of every strideth file of the standard library, its tests among them."""
    top = os.path.dirname(os.__file__)
    files = []
    for folder, folders, names in os.walk(top):
        folders[:] = sorted(set(folders) - {"site-packages", "dist-packages", "__pycache__"})
        files += [os.path.join(folder, name) for name in sorted(names) if name.endswith(".py")]
    # Debian's sitecustomize.py is a link to what an unpacked package may lack.
    files = [file for file in files if os.path.exists(file)]
    for file in files[::stride]:
        with open(file, "rb") as f:
            source = f.read()
        try:
            yield os.path.relpath(file, top), compile(source, file, "exec", dont_inherit=True)
            counts["files"] += 1
        except (SyntaxError, ValueError):
            counts["files that do not compile"] += 1  # the compiler's own test data, and lib2to3's


def collect(stride):
    for name, code in library(stride):
        for c in nested(code):
            yield name + ":" + c.co_name, c
    for c in nested(flattened()):
        yield "flattened:" + c.co_name, c
    for make in (shapes.plain, shapes.closure, shapes.generator, shapes.generator_try_first, shapes.coroutine, shapes.long_loop):
        for c in relocated(make()[0].__code__):
            yield "relocated:%s:%s" % (c.co_name, getattr(c, LINE_TABLE)[:5].hex()), c


def encode(code):
    b64 = lambda b: base64.b64encode(b).decode()
    return {"Bytecode": b64(code.co_code), "NumConsts": len(code.co_consts), "StackSize": code.co_stacksize,
            "LineTable": b64(getattr(code, LINE_TABLE)), "ExceptionTable": b64(getattr(code, "co_exceptiontable", b""))}


def rewritten(code, fields, hook):
    d = base64.b64decode
    assert fields["NumConsts"] == len(code.co_consts) + 1
    tables = {LINE_TABLE: d(fields["LineTable"] or "")}
    if VERSION >= (3, 11):
        tables["co_exceptiontable"] = d(fields["ExceptionTable"] or "")
    return code.replace(co_code=d(fields["Bytecode"]), co_consts=code.co_consts + (hook,),
                        co_stacksize=fields["StackSize"], **tables)


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
    """The line of each code unit."""
    if VERSION >= (3, 10):
        spans = [(end - start, line) for start, end, line in code.co_lines()]
    else:
        starts = list(dis.findlinestarts(code))
        ends = [start for start, line in starts[1:]] + [len(code.co_code)]
        spans = [(end - start, line) for (start, line), end in zip(starts, ends)]
    return [line for size, line in spans for _ in range(size // 2)]


Instruction = collections.namedtuple("Instruction", "name op arg start at value target")


def instructions(code):
    """Instructions with their EXTENDED_ARGs: start is the offset of the first of them, at that of the opcode."""
    found, start, target = [], None, False
    for ins in dis.get_instructions(code):
        start = ins.offset if start is None else start
        target = target or ins.is_jump_target
        if ins.opname != "EXTENDED_ARG":
            found.append(Instruction(ins.opname, ins.opcode, ins.arg, start, ins.offset, ins.argval, target))
            start, target = None, False
    return found


def check_static(name, old, new):
    """Compares both code objects as the interpreter reads them: new is old with the prologue in it."""
    was, now = instructions(old), instructions(new)
    if VERSION >= (3, 11):
        # In 3.15, RESUME 4 comes before the creation of a generator expression's generator.
        first = 1 + next(i for i, ins in enumerate(was) if ins.name == "RESUME" and ins.arg == 0)
        counts["generator expressions that create their iterator"] += any(ins.name == "RESUME" for ins in was[:first - 1])
    else:
        first = int(was[0].name == "GEN_START")
    prologue = now[first:first + 3]
    same(name, "prologue", PROLOGUE, [ins.name for ins in prologue])
    if prologue[0].arg != len(old.co_consts) or prologue[0].value is not new.co_consts[-1]:
        failures.append(name + ": the prologue does not load the hook")
    if any(ins.target for ins in prologue):
        failures.append(name + ": a jump lands in the prologue")
    del now[first:first + 3]
    if not same(name, "number of instructions", len(was), len(now)):
        return

    # Where each byte offset of old is in new; jumps before 3.11 may have got EXTENDED_ARGs.
    moved = {a.start: b.start for a, b in zip(was, now)}
    for a, b in zip(was, now):
        jump = a.op in opcode.hasjrel or a.op in opcode.hasjabs
        value = moved.get(a.value) if jump else a.value
        # Constants may be what equals nothing, not even itself: a NaN.
        if (a.name, a.target) != (b.name, b.target) or b.value is not value and b.value != value or (
                a.arg != b.arg and (VERSION >= (3, 11) or not jump)):
            same(name, "instruction, which is to go to %s" % value, a, b)
            break
        counts["jumps"] += jump
        counts["jumps to the start"] += jump and a.value == was[first].start
        counts["jumps that grew"] += b.at - b.start > a.at - a.start

    at, more = was[first].start // 2, (prologue[2].at + 2 - prologue[0].start) // 2
    if VERSION >= (3, 11):
        unmoved = [at + more, len(new.co_code) - len(old.co_code)]
        same(name, "place", [moved[was[first].start] // 2, 2 * more], unmoved)
        positions = list(old.co_positions())
        was_lines = lines(old)
        # No line begins in the prologue, nor, where none did, behind it.
        line = was_lines[at] if was_lines[at - 1] == was_lines[at] else None
        counts["prologues on a line"] += line is not None
        same(name, "co_positions", positions[:at] + [(line, line, None, None)] * more + positions[at:], list(new.co_positions()))
        same(name, "co_lines", was_lines[:at] + [line] * more + was_lines[at:], lines(new))
        was_starts, now_starts = ([line for _, line in dis.findlinestarts(code) if line is not None] for code in (old, new))
        same(name, "line starts", was_starts, now_starts)
        shifted = [h and (h[0] + more, *h[1:]) for h in handlers(old)]
        same(name, "exception table", shifted[:at] + shifted[at - 1:at] * more + shifted[at:], handlers(new))
        counts["handlers across the prologue"] += shifted[at - 1] is not None
        counts["location entries split"] += len(new.co_linetable) - len(old.co_linetable) > (more + 7) // 8
    else:
        was_lines, now_lines = lines(old), lines(new)
        # Without a line in 3.10, as is GEN_START; of the first instruction's line in 3.8 and 3.9.
        want = [was_lines[0] if VERSION < (3, 10) or first > 0 else None] * more
        for i, (a, b) in enumerate(zip(was, now)):
            if i == first:
                same(name, "lines of the prologue", want, now_lines[prologue[0].start // 2:b.start // 2])
            line = was_lines[a.start // 2:a.at // 2 + 1]
            line = line[:1] * ((b.at - b.start - a.at + a.start) // 2) + line
            if not same(name, "lines of %s at %d" % (a.name, a.start), line, now_lines[b.start // 2:b.at // 2 + 1]):
                break
        same(name, "number of lines", len(new.co_code) // 2, len(now_lines))
        # A made-up table has lines begin between EXTENDED_ARG and opcode, too.
        moved.update((a.at - n, b.at - n) for a, b in zip(was, now) for n in range(0, a.at - a.start, 2))
        starts = [(moved[start] if start or VERSION >= (3, 10) else 0, line) for start, line in dis.findlinestarts(old)]
        same(name, "line starts", starts, list(dis.findlinestarts(new)))
    # The hook stands on the empty stack.
    same(name, "co_stacksize", max(1, old.co_stacksize), new.co_stacksize)
    counts["codes"] += 1
    counts["with EXTENDED_ARG in the prologue"] += prologue[0].at > prologue[0].start


COLUMNS = ("end_lineno", "colno", "end_colno")  # from 3.11 on


def outcome(drive):
    try:
        return "returned", repr(drive())
    except BaseException as e:
        chain = []
        while e is not None:
            frames = traceback.extract_tb(e.__traceback__)
            chain.append((repr(e), [(f.name, f.lineno, *(getattr(f, column, None) for column in COLUMNS)) for f in frames]))
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


def profiled(drive):
    events = []

    def profile(frame, event, arg):
        if frame.f_code.co_filename == shapes.__file__:
            events.append((event, frame.f_code.co_name, frame.f_lineno, getattr(arg, "__name__", None)))

    def run():
        sys.setprofile(profile)
        try:
            return drive()
        finally:
            sys.setprofile(None)

    return outcome(run), events


def monitored(drive):
    if not hasattr(sys, "monitoring"):
        return None
    seen = []
    m = sys.monitoring
    names = ["PY_START", "PY_RESUME", "PY_RETURN", "PY_YIELD", "PY_UNWIND", "PY_THROW", "LINE", "RAISE", "EXCEPTION_HANDLED",
             "CALL", "C_RETURN", "C_RAISE", "JUMP", "BRANCH", "STOP_ITERATION"]
    m.use_tool_id(1, "test")
    for name in names:
        def record(code, where, *more, name=name):
            if code.co_filename == shapes.__file__:
                seen.append((name, code.co_name, where if name == "LINE" else None))
        m.register_callback(1, getattr(m.events, name), record)
    # C_RETURN and C_RAISE come with CALL and cannot be asked for alone.
    m.set_events(1, sum(getattr(m.events, name) for name in names))
    try:
        result = outcome(drive)
    finally:
        m.set_events(1, 0)
        m.free_tool_id(1)
    return result, seen


def check_behaviour(name, make, fields):
    """Drives a shape as it is and with the prologue: plainly, traced, profiled and monitored."""
    # Each line event looks its line up from the start of the table: a minute, in the longest function.
    ways = (outcome, profiled) if make is shapes.very_long else (outcome, traced, profiled, monitored)
    for way in ways:
        function, starts, drive = make()
        # Both run three times, first cold and then specialised.
        want = [way(drive) for _ in range(3)]
        function, starts, drive = make()
        hook = Hook()
        function.__code__ = rewritten(function.__code__, fields, hook)
        same(name, way.__name__, want, [way(drive) for _ in range(3)])
        if way is not monitored or hasattr(sys, "monitoring"):
            same(name, "starts, " + way.__name__, 3 * starts, hook.starts)
        counts["starts"] += hook.starts
    counts["shapes"] += 1


def check_raising_hook(name, make, fields):
    """What a hook raises is raised by the function; a generator turns StopIteration into RuntimeError."""
    class Raising:
        def __neg__(self):
            raise StopIteration("from the hook")

    function, starts, drive = make()
    function.__code__ = rewritten(function.__code__, fields, Raising())
    how, chain = outcome(drive)
    kind = "RuntimeError('generator raised StopIteration')" if function.__code__.co_flags & 0x20 else "StopIteration('from the hook')"
    same(name, "raising hook", ("raised", kind), (how, chain[0][0]))


INTERNAL = {"CACHE", "RESERVED", "INTERPRETER_EXIT", "ENTER_EXECUTOR", "TRACE_RECORD"}


def opcodes():
    """The instruction set, of what the compiler emits: no pseudo, specialised, instrumented or internal opcodes."""
    real = {name: op for name, op in opcode.opmap.items()
            if op < 256 and not name.startswith("INSTRUMENTED_") and name not in INTERNAL}
    entries = getattr(opcode, "_inline_cache_entries", {})
    caches = {name: entries[op] if isinstance(entries, list) else entries.get(name, 0) for name, op in real.items()}
    # dis.py, _is_backward_jump
    backward = lambda name: "JUMP_BACKWARD" in name or name == "END_ASYNC_FOR"
    return {
        "opcodes": real,
        "caches": {str(real[name]): n for name, n in caches.items() if n},
        "jumps": {
            "forward": [op for name, op in real.items() if op in opcode.hasjrel and not backward(name)],
            "backward": [op for name, op in real.items() if op in opcode.hasjrel and backward(name)],
            "absolute": [op for name, op in real.items() if op in opcode.hasjabs],
        },
    }


def send(message):
    print(json.dumps(message), flush=True)


def transformed(name, code):
    """What the transform makes of the code, None if it refuses."""
    send({"name": name, "code": encode(code)})
    return json.loads(sys.stdin.readline())


def main():
    warnings.simplefilter("ignore")
    send({"version": VERSION, "magic": int.from_bytes(importlib.util.MAGIC_NUMBER[:2], "little"), "opcodes": opcodes()})
    hook = Hook()
    for name, code in collect(int(sys.argv[1])):
        fields = transformed(name, code)
        if fields:
            check_static(name, code, rewritten(code, fields, hook))
    made = []
    for name, make in shapes.SHAPES.items():
        code = make()[0].__code__
        fields = transformed("shapes:" + name, code)
        if fields:
            check_static("shapes:" + name, code, rewritten(code, fields, hook))
            made.append((name, make, fields))
    # Code that is wrong already might run for ever.
    for name, make, fields in made if not failures else []:
        check_behaviour("shapes:" + name, make, fields)
        if name in ("plain", "closure", "try_first", "generator", "generator_try_first", "generator_stop_iteration"):
            check_raising_hook("shapes:" + name, make, fields)
    send({"failures": failures, "counts": counts})


main()

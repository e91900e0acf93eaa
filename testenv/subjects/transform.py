"""Offers the functions of the standard library to the transform, and compares what comes back.

Writes one JSON object with every function's code object to stdout, reads a list of patched ones from
stdin (null where the transform refused), and writes what differs beyond the inserted prologue.
"""

import asyncio
import base64
import dis
import importlib
import json
import pkgutil
import sys
import traceback
import types

MODULES = """abc argparse ast asyncio.base_events asyncio.events asyncio.queues asyncio.streams asyncio.tasks
base64 bdb calendar cmd code codecs collections configparser contextlib copy csv dataclasses datetime
decimal _pydecimal difflib dis doctest email.message email.parser enum fractions ftplib functools
gettext gzip hashlib heapq html.parser http.client http.cookies http.server imaplib inspect io _pyio
ipaddress json.decoder json.encoder locale logging logging.config mailbox mimetypes multiprocessing.pool
multiprocessing.managers netrc optparse os pathlib pdb pickle pickletools platform plistlib poplib pprint
pydoc queue random re sched selectors shelve shlex shutil smtplib socket socketserver sqlite3.dump ssl
statistics string subprocess symtable tarfile tempfile textwrap threading timeit tokenize trace
traceback types typing unittest.case unittest.mock urllib.parse urllib.request uuid warnings wave weakref
webbrowser xml.dom.minidom xml.etree.ElementTree xmlrpc.client zipfile""".split()

FIELDS = ("co_code", "co_linetable", "co_exceptiontable")


# Shapes that the standard library may lack.

def loop_first():
    while True:
        return 1


def generator_loop_first():
    while True:
        yield 1



def caught(x):
    try:
        raise ValueError(x)
    except ValueError as error:
        return error.args
    finally:
        x = None


def raising(x):
    y = x + 1
    raise KeyError(y)


def outer(a):
    def closure(b):
        cell = a + b
        return (lambda: cell + a)()
    return closure


closure = outer(3)


class Base:
    def method(self):
        return [1]


class Derived(Base):
    def method(self):
        return super().method() + [__class__.__name__]


async def awaiting(x):
    await asyncio.sleep(0)
    return x


async def async_generator():
    for i in range(3):
        await asyncio.sleep(0)
        yield i


async def async_all():
    return [i async for i in async_generator()]


SHAPES = {
    "loop_first": (loop_first, loop_first),
    "generator_loop_first": (generator_loop_first, lambda: next(generator_loop_first())),
    "caught": (caught, lambda: caught(1)),
    "raising": (raising, lambda: raising(1)),
    "closure": (closure, lambda: closure(4)),
    "outer": (outer, lambda: outer(1)(2)),
    "super": (Derived.method, lambda: Derived().method()),
    "awaiting": (awaiting, lambda: asyncio.run(awaiting(5))),
    "async_generator": (async_generator, lambda: asyncio.run(async_all())),
    "async_all": (async_all, lambda: asyncio.run(async_all())),
}
for count in (3, 255, 256, 257, 70000):
    namespace = {}
    exec("def many():\n  return [x for x in (%s)][-1] + len([%s])" % (
        ",".join("%d.5" % i for i in range(count)), ",".join("%d.25" % i for i in range(count))), namespace)
    SHAPES["many_%d" % count] = (namespace["many"], namespace["many"])


def codes_of(code, into):
    """All function code objects in a code object. Class bodies and modules are no functions."""
    if code.co_flags & 0x2 and code.co_name != "<module>":  # CO_NEWLOCALS
        into.setdefault(id(code), code)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            codes_of(const, into)


def collect():
    found = {}
    for name in MODULES:
        try:
            spec = importlib.util.find_spec(name)
            code = spec.loader.get_code(name)
        except (ImportError, AttributeError, SyntaxError):
            continue
        if code is not None:
            codes_of(code, found)
    keep = [code for code in found.values() if code.co_flags & 0x1]  # CO_OPTIMIZED: not a class body
    return keep + [function.__code__ for function, _ in SHAPES.values()]


def unpack(patched):
    return {field: base64.b64decode(patched[field] or "") for field in FIELDS}


def instructions(code):
    return [i for i in dis.get_instructions(code)]


def shift(offset, at, size):
    return offset + size if offset >= at else offset


def compare(original, patched, wrong):
    name = "%s:%d %s" % (original.co_filename, original.co_firstlineno, original.co_name)
    size = len(patched.co_code) - len(original.co_code)
    old = instructions(original)
    at = next(i.offset for i in old if i.opname == "RESUME") + 2
    new = [i for i in instructions(patched) if not at <= i.offset < at + size]
    if len(old) != len(new):
        wrong.append("%s: %d instructions became %d" % (name, len(old), len(new)))
        return
    for a, b in zip(old, new):
        if shift(a.offset, at, size) != b.offset or a.opcode != b.opcode or a.arg != b.arg:
            wrong.append("%s: %r became %r" % (name, a, b))
            return
        if a.opcode in dis.hasjrel:
            target = a.argval + size if a.argval >= at else a.argval
            if target != b.argval:
                wrong.append("%s: a jump to %d leads to %d" % (name, a.argval, b.argval))
                return
    positions, patched_positions = list(original.co_positions()), list(patched.co_positions())
    inserted = patched_positions[at // 2:(at + size) // 2]
    del patched_positions[at // 2:(at + size) // 2]
    if positions != patched_positions:
        wrong.append("%s: positions differ" % name)
    if any(line is not None for line, _, _, _ in inserted):
        wrong.append("%s: the prologue has lines %r" % (name, inserted))
    lines = [line for start, end, line in original.co_lines() for _ in range(start, end, 2)]
    patched_lines = [line for start, end, line in patched.co_lines() for _ in range(start, end, 2)]
    del patched_lines[at // 2:(at + size) // 2]
    if lines != patched_lines:
        wrong.append("%s: lines differ" % name)
    entries = [(shift(e.start, at, size), shift(e.end, at + 1, size), shift(e.target, at, size), e.depth, e.lasti)
               for e in dis._parse_exception_table(original)]
    if entries != [tuple(e)[:5] for e in dis._parse_exception_table(patched)]:
        wrong.append("%s: exception tables differ" % name)


def behave(call, function):
    """What a call shows: its result or traceback, and the trace events in the function."""
    events = []

    def tracer(frame, event, arg):
        if frame.f_code.co_name == function.__name__:
            events.append((event, frame.f_lineno))
            return tracer

    sys.settrace(tracer)
    try:
        result = repr(call())
    except Exception as error:
        result = [(f.lineno, f.name) for f in traceback.extract_tb(error.__traceback__)] + [repr(error)]
    finally:
        sys.settrace(None)
    return result, events


def main():
    codes = collect()
    offer = [dict({field: base64.b64encode(getattr(code, field)).decode() for field in FIELDS}, name=code.co_name,
                  consts=len(code.co_consts), co_stacksize=code.co_stacksize) for code in codes]
    print(json.dumps({"version": sys.version_info[:2], "functions": offer}), flush=True)
    wrong, compared, called, replaced = [], 0, 0, {}
    for code, answer in zip(codes, json.load(sys.stdin)):
        if answer is None:
            continue
        calls = []
        patched = code.replace(co_consts=code.co_consts + (calls.append,), co_stacksize=answer["co_stacksize"], **unpack(answer))
        replaced[id(code)] = (patched, calls)
        compare(code, patched, wrong)
        compared += 1
    for name, (function, call) in SHAPES.items():
        before = behave(call, function)
        patched, calls = replaced[id(function.__code__)]
        function.__code__ = patched
        after = behave(call, function)
        if before != after:
            wrong.append("%s: %r became %r" % (name, before, after))
        if len(calls) != 1:
            wrong.append("%s: the hook ran %d times in one call" % (name, len(calls)))
        called += 1
    print(json.dumps({"compared": compared, "called": called, "wrong": wrong[:20]}))


main()

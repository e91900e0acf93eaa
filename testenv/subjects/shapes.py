"""Functions of every shape that a target may name, and a driver for them.

Run as ``python shapes.py``: it imports itself as the module ``shapes``, so that
targets are ``shapes:plain``, ``shapes:Shapes.method`` and so on. It then reads one
JSON object per line from stdin and answers each with one line on stdout:

    {"call": "plain", "times": 5}               call it; add "threads": 4 for so many at once
    {"create": "generator", "times": 5}         create generators or coroutines, start none
    {"eval": "plain.__code__ is ORIGINALS['plain']"}
    {"exec": "import os; os.environ['A'] = 'b'"}
    {"exit": 0}

An answer is {"ok": true, ...} or {"ok": false, "error": "..."}. The first line,
before any request, is {"ready": true, "pid": N}.

The functions below are what tests patch and observe. Nothing else calls them.
"""

import functools
import json
import os
import sys
import threading


def plain(x):
    """Add one."""
    return x + 1


def never(x):
    """Nothing calls this one: it is what must not be reported as executed."""
    return x - 1


def raises(x):
    """Raise ValueError."""
    raise ValueError("raises(%r)" % (x,))


def generator(n):
    """Yield n numbers."""
    for i in range(n):
        yield i


async def coroutine(x):
    """Return x + 2, after no await at all."""
    return x + 2


async def async_generator(n):
    """Yield n numbers, asynchronously."""
    for i in range(n):
        yield i


if sys.version_info >= (3, 8):
    from shapes38 import keywords
else:

    def keywords(a, b=2, *args, c=3, **kwargs):
        """Have parameters of each kind."""
        return a + b + sum(args) + c + sum(kwargs.values())


def _make_closure(one, two):
    def inner(x):
        """Use two free variables, and hold a cell of its own."""
        total = one + two + x
        return (lambda: total)()

    return inner


closure = _make_closure(10, 20)


def _make_closure_generator(step):
    def inner(n):
        """Be a closure and a generator at once."""
        for i in range(n):
            yield i * step

    return inner


closure_generator = _make_closure_generator(3)


def _decorate(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


@_decorate
def wrapped(x):
    """Sit behind a decorator that uses functools.wraps."""
    return x * 2


class Shapes:
    """Methods of each kind."""

    def method(self, x):
        """Be an instance method."""
        return x + 3

    @classmethod
    def class_method(cls, x):
        """Be a class method."""
        return x + 4

    @staticmethod
    def static_method(x):
        """Be a static method."""
        return x + 5

    @property
    def attribute(self):
        """Be a property."""
        return 6

    class Inner:
        """A class in a class."""

        def deep(self, x):
            """Be a method of a class in a class."""
            return x + 7


class Child(Shapes):
    """Inherit everything, and add one method."""

    def own(self, x):
        """Be a method that only the child has."""
        return x + 8


def _drive(coro):
    try:
        while True:
            coro.send(None)
    except StopIteration as stop:
        return stop.value


def _collect(agen):
    async def collect():
        return [x async for x in agen]

    return _drive(collect())


# How each target is called. A path that is not here is looked up and called with 1.
CALLS = {
    "generator": lambda: list(generator(3)),
    "coroutine": lambda: _drive(coroutine(1)),
    "async_generator": lambda: _collect(async_generator(3)),
    "keywords": lambda: keywords(1, 2, 3, c=4, d=5),
    "closure_generator": lambda: list(closure_generator(3)),
    "Shapes.method": lambda: Shapes().method(1),
    "Shapes.attribute": lambda: Shapes().attribute,
    "Shapes.Inner.deep": lambda: Shapes.Inner().deep(1),
    "Child.method": lambda: Child().method(1),
    "Child.own": lambda: Child().own(1),
}

# What "create" makes: an object whose body has not started.
CREATES = {
    "generator": lambda: generator(3),
    "coroutine": lambda: coroutine(1),
    "async_generator": lambda: async_generator(3),
    "closure_generator": lambda: closure_generator(3),
}


def function_of(path):
    """The Python function that the target "shapes:PATH" names."""
    owner, found = None, sys.modules[__name__]
    for name in path.split("."):
        owner, found = found, getattr(found, name)
        for cls in getattr(owner, "__mro__", ()):
            if name in vars(cls):
                found = vars(cls)[name]
                break
    if isinstance(found, property):
        found = found.fget
    if isinstance(found, (staticmethod, classmethod)):
        found = found.__func__
    while hasattr(found, "__wrapped__"):
        found = found.__wrapped__
    return found


TARGETS = [
    "plain",
    "never",
    "raises",
    "generator",
    "coroutine",
    "async_generator",
    "keywords",
    "closure",
    "closure_generator",
    "wrapped",
    "Shapes.method",
    "Shapes.class_method",
    "Shapes.static_method",
    "Shapes.attribute",
    "Shapes.Inner.deep",
    "Child.method",
    "Child.own",
]

# The code object of each target as the module was imported: what a revert must restore.
ORIGINALS = {path: function_of(path).__code__ for path in TARGETS}

# What "create" made, kept alive and never started.
KEPT = []

# Of this many calls at most, an answer holds the results.
RESULTS = 100


def _call(path, times):
    call = CALLS.get(path)
    if call is None:
        found = sys.modules[__name__]
        for name in path.split("."):
            found = getattr(found, name)
        call = functools.partial(found, 1)
    results = []
    for i in range(times):
        try:
            result = call()
        except Exception as err:
            result = "%s: %s" % (type(err).__name__, err)
        if i < RESULTS:
            results.append(result)
    return results


def _jsonable(value):
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return repr(value)
    return value


def _answer(request):
    namespace = sys.modules[__name__].__dict__
    times = request.get("times", 1)
    if "call" in request:
        threads = request.get("threads", 0)
        if not threads:
            return {"results": _jsonable(_call(request["call"], times))}
        workers = [threading.Thread(target=_call, args=(request["call"], times)) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return {"results": []}
    if "create" in request:
        for _ in range(times):
            KEPT.append(CREATES[request["create"]]())
        return {"results": []}
    if "eval" in request:
        return {"value": _jsonable(eval(request["eval"], namespace))}
    if "exec" in request:
        exec(request["exec"], namespace)
        return {}
    raise ValueError("request %r has none of call, create, eval, exec, exit" % (request,))


def main():
    """Answer requests until stdin closes or one says exit."""
    # The protocol has a descriptor of its own: what a target prints goes to stderr.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def send(message):
        out.write(json.dumps(message) + "\n")
        out.flush()

    send({"ready": True, "pid": os.getpid()})
    while True:
        line = sys.stdin.readline()
        if not line:
            return 0
        request = json.loads(line)
        if "exit" in request:
            send({"ok": True})
            return request["exit"]
        try:
            answer = dict(_answer(request), ok=True)
        except Exception as err:
            answer = {"ok": False, "error": "%s: %s" % (type(err).__name__, err)}
        send(answer)


if __name__ == "__main__":
    import shapes

    sys.exit(shapes.main())

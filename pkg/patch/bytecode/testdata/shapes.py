"""Functions of every shape that the compiler makes, and how to drive each.

A shape yields the function whose code is to be replaced, how often a drive starts it, and the
drive. Line numbers matter here: traces and tracebacks are compared.
"""
import functools
import sys
import textwrap

SHAPES = {}


def shape(make):
    SHAPES[make.__name__] = make
    return make


def since(minor):
    return shape if sys.version_info >= (3, minor) else lambda make: make


def compiled(source):
    """The function f of a source that is made up, or too new for the oldest interpreter to parse."""
    space = {}
    exec(compiled_module(source), space)
    return space["f"]


@functools.lru_cache(maxsize=None)
def compiled_module(source):
    return compile(textwrap.dedent(source), __file__, "exec")


@shape
def plain():
    def f(a, b=2, *rest, c=3, **kw):
        """A docstring."""
        total = a + b
        for x in rest:
            total += x
        return total, c, sorted(kw)

    return f, 2, lambda: (f(1), f(1, 4, 5, 6, c=7, d=8))


@shape
def one_line():
    def f(x): return x + 1

    return f, 1, lambda: f(1)


@shape
def one_lambda():
    f = lambda: None

    return f, 1, f


@shape
def warm():
    def f(x):
        return x + 1

    return f, 3000, lambda: sum(f(x) for x in range(3000))


@shape
def recursive():
    def fib(n):
        if n < 2:
            return n
        return fib(n - 1) + fib(n - 2)

    return fib, 177, lambda: fib(10)


@shape
def closure():
    a, b = 1, 2

    def f(x):
        y = x + a

        def g():
            nonlocal y
            y += b
            return y

        return g() + y

    return f, 1, lambda: f(5)


@shape
def cells():
    def f(x, y):
        z = 3
        return [lambda: x + z, lambda: y], [x * z * i for i in range(3)]

    return f, 1, lambda: [g() for g in f(1, 2)[0]]


@shape
def many_cells():
    names = ["v%d" % i for i in range(300)]
    source = "def f(%s):\n    return lambda: %s\n" % (", ".join(names), " + ".join(names))
    f = compiled(source)
    return f, 1, lambda: f(*range(300))()


@shape
def many_consts():
    source = "def f(x):\n" + "".join("    x += %d\n" % (1000 + i) for i in range(400)) + "    return x\n"
    f = compiled(source)
    return f, 1, lambda: f(0)


def padded_with(count):
    def f(x):
        while x > 2:
            x -= 1
        return x

    f.__code__ = f.__code__.replace(co_consts=f.__code__.co_consts + (None,) * (count - len(f.__code__.co_consts)))
    return f, 1, lambda: f(7)


@shape
def consts_255():
    return padded_with(255)


@shape
def consts_256():
    return padded_with(256)


@shape
def consts_70000():
    return padded_with(70000)


@shape
def long_loop():
    body = "".join("        if x %% %d == 1:\n            y += %d\n            continue\n" % (i + 2, i) for i in range(200))
    source = "def f(n):\n    y = 0\n    for x in range(n):\n" + body + "        y -= 1\n    return y\n"
    f = compiled(source)
    return f, 1, lambda: f(500)


@shape
def while_true_first():
    def f(todo=[]):
        while True:
            if len(todo) > 5:
                break
            todo.append(1)
        del todo[:]
        return "done"

    return f, 1, f


@shape
def while_true_only():
    def f(step):
        while True:
            step()

    return f, 1, lambda: f(iter([1, 2]).__next__)


@shape
def while_true_one_line():
    def f(step):
        while True: step()

    return f, 1, lambda: f(iter([1, 2]).__next__)


@shape
def while_first():
    def f(x):
        while x:
            x -= 1
        else:
            x = "done"
        return x

    return f, 2, lambda: (f(3), f(0))


@shape
def while_on_the_first_line():
    f = compiled("""
        def f(x):
            while (x
                   and len(x) < 9): x += "."
            return x
        """)
    return f, 2, lambda: (f("x"), f(""))


def loop_after(statements):
    """A loop whose head, an absolute jump's target before CPython 3.11, is near where its argument grows."""
    f = compiled("def f(x):\n" + "    x\n" * statements + """
    for i in range(3):
        if i == x:
            continue
        while x > 1:
            x -= 1
            try:
                x / (x - 1)
            except ZeroDivisionError:
                break
    return x
""")
    return f, 2, lambda: (f(5), f(0))


# Two instructions a statement: 256 bytes of code (3.8, 3.9) and 256 instructions (3.10).
for statements in [*range(50, 66), *range(110, 130)]:
    SHAPES["loop_after_%d" % statements] = lambda statements=statements: loop_after(statements)


@shape
def very_long():
    """More than 65,535 instructions and constants, and a loop around them all."""
    body = "".join("        x = %d\n" % (70000 + i) for i in range(66000))
    f = compiled("def f(n):\n    x = 0\n    while n:\n        n -= 1\n" + body + "    return x\n")
    return f, 1, lambda: f(1)


@shape
def try_first():
    def f(x):
        try:
            return 1 / x
        except ZeroDivisionError:
            return "zero"
        finally:
            x = None

    return f, 2, lambda: (f(0), f(2))


@shape
def try_reraise():
    def f(x):
        try:
            try:
                x["a"]["b"]
            except KeyError as e:
                raise ValueError("outer") from e
        finally:
            x.clear()

    return f, 1, lambda: f({"a": {}})


@since(11)
def groups():
    f = compiled("""
        def f():
            try:
                raise ExceptionGroup("g", [ValueError(1), TypeError(2), KeyError(3)])
            except* ValueError as e:
                first = len(e.exceptions)
            except* TypeError:
                pass
        """)
    return f, 1, f


@shape
def with_first():
    class Manager:
        def __enter__(self):
            return 4

        def __exit__(self, kind, value, tb):
            return kind is KeyError

    def f(fail):
        with Manager() as a, Manager():
            if fail:
                raise fail
            return a

    return f, 3, lambda: (f(None), f(KeyError(1)), f(ValueError(2)))


@shape
def raises_at_columns():
    def f(a, b):
        return (a +
                (b
                 / (a - a)) + len(
                     "x"))

    return f, 1, lambda: f(1, 2)


@shape
def raises_first():
    def f(): raise LookupError("at once")

    return f, 1, f


@shape
def wrong_arguments():
    def f(a):
        return a

    return f, 0, f


@since(10)
def matches():
    f = compiled("""
        def f(value):
            match value:
                case {"k": [a, *rest]}:
                    return a, rest
                case (1, x) | [2, x, _]:
                    return x
                case str() as s if len(s) > 2:
                    return s
                case _:
                    return None
        """)
    return f, 5, lambda: [f(v) for v in ({"k": [1, 2]}, (1, 5), [2, 6, 7], "long", 9)]


@since(12)
def type_parameters():
    f = compiled("""
        def f[T: int](value: T, *more: *tuple[T, ...]) -> list[T]:
            type Pairs[U] = list[tuple[T, U]]
            class Box[V]:
                content: V = value
                def get(self): return [self.content, __class__.__name__]
            return Box().get(), [x for x in more], Pairs.__type_params__[0].__name__
        """)
    return f, 1, lambda: f(1, 2, 3)


@since(14)
def templates():
    f = compiled("""
        def f(a, b):
            try:
                return t"{a!r:>{b}} and {b}".values
            except ValueError, TypeError:
                return f"{a}"
        """)
    return f, 1, lambda: f("x", 5)


@since(15)
def unpacking_comprehensions():
    f = compiled("""
        def f(rows):
            return [*row for row in rows], {**{len(row): row} for row in rows}
        """)
    return f, 1, lambda: f([[1], [2, 3]])


@shape
def super_method():
    class A:
        def m(self):
            return "A"

    class B(A):
        def m(self):
            return super().m() + __class__.__name__

    return B.m, 1, lambda: B().m()


@shape
def super_init():
    class A:
        def __init__(self, x):
            self.x = x

    class B(A):
        def __init__(self, x):
            keep = lambda: self
            super().__init__(x + 1)
            self.again = keep().x

    return B.__init__, 1, lambda: vars(B(1))


@shape
def class_inside():
    def f(base):
        class Inner(base):
            value = 3

            def get(self):
                return self.value, __class__.__name__

        return Inner().get()

    return f, 1, lambda: f(object)


@shape
def generator():
    def f(n):
        got = 0
        while got < n:
            got += (yield got) or 1
        return "end"

    def drive():
        unstarted = f(3)
        g = f(6)
        seen = [next(g), g.send(2), g.send(None)]
        return seen, list(g), list(f(2)), unstarted.close()

    return f, 2, drive


@shape
def generator_never_started():
    def f():
        yield 1

    def drive():
        f()
        f().close()
        f().throw(ValueError("in"))

    return f, 0, drive


@shape
def generator_try_first():
    def f():
        try:
            got = yield 1
            yield got
        except KeyError:
            yield "caught"
        finally:
            pass

    def drive():
        g, h = f(), f()
        next(h)
        return next(g), g.throw(KeyError(1)), list(g), h.send(5), h.close()

    return f, 2, drive


@shape
def generator_stop_iteration():
    def f(empty):
        while True:
            yield next(empty)

    return f, 1, lambda: list(f(iter([])))


@shape
def generator_yield_from():
    def f(inner):
        kept = lambda: inner
        result = yield from kept()
        yield result

    def inner():
        got = yield 1
        return got

    def drive():
        g = f(inner())
        return next(g), g.send("sent"), next(f([7]))

    return f, 2, drive


@shape
def generator_expression():
    def f(a):
        return sum(x + a for x in range(4)), {x: a for x in "ab"}

    return f, 1, lambda: f(2)


class Step:
    def __await__(self):
        return (yield "step")


def step_through(awaitable):
    seen = []
    try:
        while True:
            seen.append(awaitable.send(None))
    except StopIteration as e:
        return seen, e.value


@shape
def coroutine():
    async def f(n):
        for i in range(n):
            await Step()
        return [await Step() for i in range(2)]

    def drive():
        f(1).close()
        return step_through(f(2))

    return f, 1, drive


@shape
def coroutine_raises():
    async def f():
        try:
            await Step()
        finally:
            raise OSError("in finally")

    return f, 1, lambda: step_through(f())


@shape
def coroutine_thrown():
    async def f():
        try:
            await Step()
        except ValueError:
            await Step()
            return "caught"

    def drive():
        c = f()
        first = c.send(None)
        return first, c.throw(ValueError("in")), step_through(c)

    return f, 1, drive


@shape
def async_generator():
    class Manager:
        async def __aenter__(self):
            return await Step()

        async def __aexit__(self, *exc):
            await Step()

    async def f(n):
        async with Manager():
            for i in range(n):
                yield i
                await Step()

    async def use():
        f(9)
        return [x async for x in f(3)], [x * 2 async for x in f(2) if x]

    return f, 2, lambda: step_through(use())


@shape
def async_for():
    async def source():
        yield 1
        yield 2

    async def f():
        total = 0
        async for x in source():
            total += x
        else:
            total += 10
        return total

    return f, 1, lambda: step_through(f())

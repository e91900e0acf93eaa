"""Every way that CPython starts a Python function, and how often each does.

SHAPES maps a name to (code object, call, starts): calling call() starts that code object so many
times. It is what counts at the eval loop are compared with. Run on CPython 3.6 to 3.15.
"""

import asyncio
import collections
import contextlib
import copy
import functools
import gc
import itertools
import operator
import threading
import types
import weakref

SHAPES = {}


def shape(starts=1):
    """Enter what the decorated function returns into SHAPES: a function or its code, and a call."""

    def enter(factory):
        function, call = factory()
        function = getattr(function, "__func__", function)
        SHAPES[factory.__name__] = (getattr(function, "__code__", function), call, starts)
        return factory

    return enter


def drive(coroutine):
    try:
        while True:
            coroutine.send(None)
    except StopIteration as stop:
        return stop.value


@types.coroutine
def pause():
    yield


# Plain calls.


@shape()
def no_arguments():
    def f():
        pass

    return f, lambda: f()


@shape()
def positional():
    def f(a, b, c):
        return a

    return f, lambda: f(1, 2, 3)


@shape()
def defaults():
    def f(a, b=2):
        return b

    return f, lambda: f(1)


@shape()
def keyword():
    def f(a, b):
        return b

    return f, lambda: f(b=1, a=2)


@shape()
def keyword_only():
    def f(*, a, b=1):
        return a

    return f, lambda: f(a=1)


@shape()
def star_arguments():
    def f(*args, **kwargs):
        return args

    return f, lambda: f(*range(5), **{"k": 1})


@shape()
def unpacked_into_positions():
    def f(a, b, c):
        return c

    return f, lambda: f(*(1, 2, 3))


@shape(3)
def through_call_attribute():
    def f():
        pass

    return f, lambda: (f.__call__(), operator.methodcaller("__call__")(f), types.FunctionType.__call__(f))


@shape()
def with_a_cell():
    def f(a):
        return (lambda: a)

    return f, lambda: f(1)


@shape()
def closure():
    x = [1]

    def f():
        return x

    return f, lambda: f()


@shape()
def closure_with_cell():
    x = [1]

    def f(a):
        return lambda: (a, x)

    return f, lambda: f(1)


@shape(2)
def lambda_expression():
    f = lambda x: x  # noqa: E731
    return f, lambda: (f(1), f(2))


@shape(5)
def many_closures_of_one_code():
    def make(n):
        def f():
            return n

        return f

    made = [make(n) for n in range(5)]
    return made[0], lambda: [f() for f in made]


@shape(5)
def inner_of_each_call():
    def outer():
        def f():
            pass

        f()

    code, = [c for c in outer.__code__.co_consts if hasattr(c, "co_code")]
    return code, lambda: [outer() for _ in range(5)]


@shape(177)
def recursion():
    def fib(n):
        return n if n < 2 else fib(n - 1) + fib(n - 2)

    return fib, lambda: fib(10)


@shape(200)
def deep_recursion():
    def f(n):
        return n and f(n - 1)

    return f, lambda: f(199)


@shape(4)
def mutual_recursion():
    def even(n):
        return n == 0 or odd(n - 1)

    def odd(n):
        return n != 0 and even(n - 1)

    return even, lambda: even(6)


@shape()
def raising():
    def f():
        raise ValueError

    def call():
        try:
            f()
        except ValueError:
            pass

    return f, call


@shape(0)
def wrong_arguments():
    def f(a):
        pass

    def call():
        try:
            f()
        except TypeError:
            pass

    return f, call


@shape(1000)
def hot_loop():
    def f(i):
        return i

    def call():
        for i in range(1000):
            f(i)

    return f, call


@shape(3)
def different_function_same_code():
    def f():
        pass

    g = types.FunctionType(f.__code__, {})
    return f, lambda: (f(), g(), g())


@shape()
def swapped_code():
    def f():
        return 1

    def g():
        return 2

    g.__code__ = f.__code__
    return f, lambda: g()


# Methods and classes.


@shape()
def method():
    class C:
        def f(self):
            pass

    return C.f, lambda: C().f()


@shape(2)
def bound_method():
    class C:
        def f(self, x):
            pass

    m = C().f
    return C.f, lambda: (m(1), m(x=2))


@shape(2)
def class_method():
    class C:
        @classmethod
        def f(cls):
            pass

    return C.f, lambda: (C.f(), C().f())


@shape(2)
def static_method():
    class C:
        @staticmethod
        def f():
            pass

    return C.f, lambda: (C.f(), C().f())


@shape()
def inherited_by_super():
    class B:
        def f(self):
            pass

    class C(B):
        def f(self):
            return super().f()

    return B.f, lambda: C().f()


@shape(10)
def property_getter():
    class C:
        @property
        def f(self):
            return 1

    c = C()
    return C.f.fget, lambda: [c.f for _ in range(10)]


@shape()
def property_setter():
    class C:
        def g(self, value):
            pass

        f = property(None, g)

    def call():
        C().f = 1

    return C.g, call


@shape()
def cached_property():
    class C:
        def g(self):
            return 1

        f = functools.cached_property(g) if hasattr(functools, "cached_property") else property(g)

    if hasattr(functools, "cached_property"):
        C.f.__set_name__(C, "f")
    return C.g, lambda: C().f


@shape()
def init():
    class C:
        def __init__(self, x):
            self.x = x

    return C.__init__, lambda: C(1)


@shape(50)
def init_when_warm():
    class C:
        def __init__(self, x):
            self.x = x

    return C.__init__, lambda: [C(i) for i in range(50)]


@shape()
def new():
    class C:
        def __new__(cls):
            return object.__new__(cls)

    return C.__new__, lambda: C()


@shape(2)
def call():
    class C:
        def __call__(self, x=1):
            pass

    return C.__call__, lambda: (C()(), C()(x=2))


@shape(20)
def getitem():
    class C:
        def __getitem__(self, i):
            return i

    c = C()
    return C.__getitem__, lambda: [c[i] for i in range(20)]


@shape()
def setitem():
    class C:
        def __setitem__(self, i, value):
            pass

    def call():
        C()[0] = 1

    return C.__setitem__, call


@shape(3)
def arithmetic():
    class C:
        def __add__(self, other):
            return self

        __radd__ = __add__

    return C.__add__, lambda: (C() + 1, 1 + C(), sum([C()], 0) and None)


@shape(2)
def comparison():
    class C:
        def __eq__(self, other):
            return False

        __hash__ = None

    return C.__eq__, lambda: (C() == 1, C() in [1])


@shape()
def hash_of_a_key():
    class C:
        def __hash__(self):
            return 1

    return C.__hash__, lambda: {C(): 1}


@shape(3)
def conversions():
    class C:
        def f(self):
            return 1

        __len__ = __int__ = __index__ = f

    return C.f, lambda: (len(C()), int(C()), [0, 1][C()])


@shape()
def representation():
    class C:
        def __repr__(self):
            return "C"

    return C.__repr__, lambda: "%r" % C()


@shape(4)
def iteration():
    class C:
        def __init__(self):
            self.n = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.n += 1
            if self.n > 3:
                raise StopIteration
            return self.n

    return C.__next__, lambda: [x for x in C()]


@shape(20)
def getattr_hook():
    class C:
        def __getattr__(self, name):
            return name

    c = C()
    return C.__getattr__, lambda: [c.missing for _ in range(20)]


@shape(20)
def getattribute_hook():
    class C:
        def __getattribute__(self, name):
            return name

    c = C()
    return C.__getattribute__, lambda: [c.anything for _ in range(20)]


@shape()
def descriptor():
    class D:
        def __get__(self, owner, kind):
            return 1

    class C:
        d = D()

    return D.__get__, lambda: C().d


@shape()
def context_manager_exit():
    class C:
        def __enter__(self):
            return self

        def __exit__(self, *exc):
            return True

    def call():
        with C():
            raise ValueError

    return C.__exit__, call


@shape()
def finaliser():
    class C:
        def __del__(self):
            pass

    return C.__del__, lambda: C() and None


@shape()
def finaliser_in_a_cycle():
    class C:
        def __del__(self):
            pass

    def call():
        c = C()
        c.c = c
        del c
        gc.collect()

    return C.__del__, call


@shape()
def weak_reference_callback():
    class C:
        pass

    def f(ref):
        pass

    def call():
        c = C()
        ref = weakref.ref(c, f)
        del c
        return ref

    return f, call


@shape(4)
def metaclass():
    class M(type):
        def f(cls, *args, **kwargs):
            pass

        __init__ = f

    def call():
        class B(metaclass=M):
            pass

        for _ in range(3):
            M("C", (B,), {})

    return M.f, call


@shape()
def subclass_hook():
    class B:
        def __init_subclass__(cls, **kwargs):
            pass

    def call():
        class C(B, k=1):
            pass

    return B.__init_subclass__, call


@shape(3)
def class_body():
    def f():
        class C:
            x = 1

        return C

    code, = [c for c in f.__code__.co_consts if hasattr(c, "co_code")]
    return code, lambda: [f() for _ in range(3)]


# From C.


@shape(30)
def from_map():
    def f(x):
        return x

    return f, lambda: list(map(f, range(30)))


@shape(20)
def from_sort():
    def f(x):
        return -x

    return f, lambda: sorted(range(20), key=f)


@shape(19)
def from_reduce():
    def f(a, b):
        return a + b

    return f, lambda: functools.reduce(f, range(20))


@shape(3)
def from_partial():
    def f(a, b, *, c=0):
        return a

    p = functools.partial(f, 1, c=2)
    return f, lambda: [p(i) for i in range(3)]


@shape()
def from_lru_cache():
    def f(x):
        return x

    def call():
        cached = functools.lru_cache()(f)
        return cached(1), cached(1), cached(1)

    return f, call


@shape(5)
def from_default_factory():
    def f():
        return 1

    return f, lambda: [collections.defaultdict(f)[i] for i in range(5)]


@shape(4)
def from_iterators():
    def f(*x):
        return 0

    return f, lambda: (list(filter(f, [1])), list(itertools.starmap(f, [(1, 2)])), next(iter(f, 1)), max([1], key=f))


@shape(10)
def from_a_c_comparison():
    @functools.cmp_to_key
    def unused(a, b):
        pass

    def f(a, b):
        return 0

    return f, lambda: [functools.cmp_to_key(f)(1) < functools.cmp_to_key(f)(2) for _ in range(10)]


@shape(2)
def from_copy():
    class C:
        def __deepcopy__(self, memo):
            return self

    return C.__deepcopy__, lambda: copy.deepcopy([C(), C()])


@shape()
def wrapped():
    def f(x):
        return x

    @functools.wraps(f)
    def g(*args, **kwargs):
        return f(*args, **kwargs)

    return f, lambda: g(1)


@shape(40)
def in_threads():
    def f():
        pass

    def call():
        threads = [threading.Thread(target=lambda: [f() for _ in range(10)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return f, call


# Code that is no function.


@shape(3)
def executed_source():
    code = compile("x = 1", "<executed>", "exec")
    return code, lambda: [exec(code, {}) for _ in range(3)]


@shape(3)
def evaluated_source():
    code = compile("1 + 1", "<evaluated>", "eval")
    return code, lambda: [eval(code) for _ in range(3)]


# Generators.


@shape()
def generator():
    def f():
        for i in range(5):
            yield i

    return f, lambda: list(f())


@shape(0)
def generator_not_started():
    def f():
        yield

    return f, lambda: [f() for _ in range(5)]


@shape(0)
def generator_closed_before_start():
    def f():
        yield

    return f, lambda: f().close()


@shape(0)
def generator_thrown_into_before_start():
    def f():
        yield

    def call():
        try:
            f().throw(ValueError())
        except ValueError:
            pass

    return f, call


@shape()
def generator_sent_to():
    def f():
        while (yield):
            pass

    def call():
        g = f()
        next(g)
        for _ in range(5):
            g.send(1)
        g.close()

    return f, call


@shape()
def generator_thrown_into():
    def f():
        while True:
            try:
                yield
            except ValueError:
                pass

    def call():
        g = f()
        next(g)
        for _ in range(5):
            g.throw(ValueError())

    return f, call


@shape(11)
def delegating_generators():
    def f(n):
        if n:
            yield from f(n - 1)
            yield n

    return f, lambda: list(f(10))


@shape()
def generator_expression():
    f = lambda: sum(i for i in range(5))  # noqa: E731
    code, = [c for c in f.__code__.co_consts if hasattr(c, "co_code")]
    return code, f


@shape(0)
def generator_expression_not_started():
    f = lambda: (i for i in range(5)) and None  # noqa: E731
    code, = [c for c in f.__code__.co_consts if hasattr(c, "co_code")]
    return code, f


@shape(1)
def generator_unpacked():
    def f():
        yield 1
        yield 2

    def call():
        a, b = f()

    return f, call


@shape()
def generator_with_a_cell():
    x = [1]

    def f(a):
        yield lambda: (a, x)

    return f, lambda: list(f(1))


@shape()
def generator_as_context_manager():
    def f():
        yield

    def call():
        with contextlib.contextmanager(f)():
            pass

    return f, call


# Coroutines.


@shape()
def coroutine():
    async def f():
        return 1

    return f, lambda: drive(f())


@shape(0)
def coroutine_not_started():
    async def f():
        return 1

    return f, lambda: f().close()


@shape(3)
def coroutine_awaited():
    async def f():
        await pause()

    async def g():
        for _ in range(3):
            await f()

    return f, lambda: drive(g())


@shape()
def coroutine_that_pauses():
    async def f():
        for _ in range(5):
            await pause()

    return f, lambda: drive(f())


@shape()
def coroutine_cancelled():
    async def f():
        await pause()

    def call():
        c = f()
        c.send(None)
        c.close()

    return f, call


@shape()
def awaitable_object():
    class C:
        def __await__(self):
            yield
            return 1

    async def g():
        await C()

    return C.__await__, lambda: drive(g())


@shape()
def async_generator():
    async def f():
        for i in range(5):
            yield i
            await pause()

    async def g():
        return [x async for x in f()]

    return f, lambda: drive(g())


@shape(0)
def async_generator_not_started():
    async def f():
        yield 1

    return f, lambda: f() and None


@shape()
def async_context_manager():
    class C:
        async def __aenter__(self):
            pass

        async def __aexit__(self, *exc):
            await pause()

    async def g():
        async with C():
            pass

    return C.__aexit__, lambda: drive(g())


@shape(10)
def tasks_of_an_event_loop():
    async def f():
        await asyncio.sleep(0)

    async def g():
        await asyncio.gather(*[f() for _ in range(10)])

    def call():
        loop = asyncio.new_event_loop()
        loop.run_until_complete(g())
        loop.close()

    return f, call


def run(times, between=lambda: None):
    """Call every shape so many times, and between() before each call."""
    for _, call, _ in SHAPES.values():
        for _ in range(times):
            between()
            call()

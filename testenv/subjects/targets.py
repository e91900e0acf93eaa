"""Every form of target that sca-probe resolves or refuses, each with the answer that is right.

``CASES`` is the table: a target, and what it must resolve to. That is either a Python expression
for the code object, evaluated in this module, or ``refused(KIND)``, one of the kinds of
``UnresolvedKind`` in pkg/pyframes/errors.go. The engine, which resolves inside the process, and
the observer, which resolves from its memory, run the same table.

How a target is resolved: its names are looked up one after the other from ``sys.modules[module]``
as ``inspect.getattr_static`` does, running no Python code. What is found is followed to a Python
function: through descriptors to what they hold, and through ``__wrapped__`` to the innermost.
Names after ``<locals>`` are those of code objects in the constants of the function before it.

Written for CPython 3.6 and newer; what came later is defined where it can be.
"""

import abc
import collections
import contextlib
import enum
import functools
import random
import re
import sys
import types

CASES = []


def refused(kind):
    """Say that a target must be refused, and as what."""
    return {"refused": kind}


def case(target, expected):
    """Add a case: a target without the module is one of this module."""
    CASES.append((target if ":" in target else "targets:" + target, expected))


def code_in(function, *names):
    """Return the code object that a function's constants hold under nested names."""
    code = getattr(function, "__code__", function)
    for name in names:
        (code,) = [c for c in code.co_consts if isinstance(c, types.CodeType) and c.co_name == name]
    return code


# Functions.


def function(x):
    return x + 1


alias = function
anonymous = lambda x: x + 2  # noqa: E731
ünïcode_名前 = function


def generator():
    yield 1


async def coroutine():
    return 1


async def async_generator():
    yield 1


case("function", "function.__code__")
case("alias", "function.__code__")
case("anonymous", "anonymous.__code__")
case("ünïcode_名前", "function.__code__")
case("generator", "generator.__code__")
case("coroutine", "coroutine.__code__")
case("async_generator", "async_generator.__code__")


# Methods, each where it is defined.


class Base:
    def __init__(self):
        self.own = function

    def __call__(self):
        return self

    def method(self):
        return 1

    def inherited(self):
        return 2

    @staticmethod
    def static(x):
        return x

    @classmethod
    def klass(cls):
        return cls

    def __private(self):
        return 3

    class Nested:
        def deep(self):
            return 4

        class Deeper:
            @staticmethod
            def deepest():
                return 5


class Child(Base):
    def __new__(cls):
        return super().__new__(cls)

    def method(self):
        return super().method()


class Left(Base):
    def method(self):
        return 6


class Diamond(Child, Left):
    pass


class Slots:
    __slots__ = ("held", "empty")

    def __init__(self):
        self.held = Base()

    def method(self):
        return 7


class __Underscored:
    def __mangled(self):
        return 8


Underscored = __Underscored

case("Base.method", "Base.method.__code__")
case("Base.__init__", "Base.__init__.__code__")
case("Base.__call__", "Base.__call__.__code__")
case("Base.static", "Base.static.__code__")
case("Base.klass", "Base.klass.__func__.__code__")
case("Base.Nested.deep", "Base.Nested.deep.__code__")
case("Base.Nested.Deeper.deepest", "Base.Nested.Deeper.deepest.__code__")
# A private name as its __qualname__ and the source have it, and as the namespace has it.
case("Base.__private", "Base._Base__private.__code__")
case("Base._Base__private", "Base._Base__private.__code__")
case("Child.__private", "Base._Base__private.__code__")
case("Underscored.__mangled", "Underscored._Underscored__mangled.__code__")
case("Child.method", "Child.__dict__['method'].__code__")
case("Child.inherited", "Base.inherited.__code__")
case("Child.static", "Base.static.__code__")
case("Child.klass", "Base.klass.__func__.__code__")
case("Child.__new__", "Child.__new__.__code__")
case("Child.__init__", "Base.__init__.__code__")
case("Child.Nested.deep", "Base.Nested.deep.__code__")
case("Diamond.method", "Child.__dict__['method'].__code__")
case("Slots.method", "Slots.method.__code__")


# Metaclasses.


class Meta(type):
    def __call__(cls, *args):
        return super().__call__(*args)

    def of_meta(cls):
        return cls

    def shadowed(cls):
        return cls

    @property
    def meta_property(cls):
        return cls


class WithMeta(metaclass=Meta):
    def shadowed(self):
        return self


class Abstract(abc.ABC):
    @abc.abstractmethod
    def abstract(self):
        """Have no body but this."""

    @property
    @abc.abstractmethod
    def abstract_property(self):
        """Have no body but this."""


class Color(enum.Enum):
    RED = 1

    def describe(self):
        return self.name


Point = collections.namedtuple("Point", "x y")

case("Meta.of_meta", "Meta.of_meta.__code__")
case("Meta.__call__", "Meta.__call__.__code__")
case("WithMeta.of_meta", "Meta.of_meta.__code__")
case("WithMeta.shadowed", "WithMeta.__dict__['shadowed'].__code__")
case("WithMeta.meta_property", "Meta.meta_property.fget.__code__")
case("Abstract.abstract", "Abstract.abstract.__code__")
case("Abstract.abstract_property", "Abstract.abstract_property.fget.__code__")
case("Color.describe", "Color.describe.__code__")
case("Point._asdict", "Point._asdict.__code__")
case("Point.__new__", "Point.__new__.__code__")


# Properties and what else is a descriptor.


class Descriptors:
    @property
    def full(self):
        return 1

    @full.setter
    def full(self, value):
        pass

    @full.deleter
    def full(self):
        pass

    @property
    def read_only(self):
        return 2

    write_only = property(None, full.fset)

    def target(self, x):
        return x

    bound_late = functools.partialmethod(target, 1)
    of_partialmethod = functools.partialmethod(bound_late)

    @contextlib.contextmanager
    def manager(self):
        yield

    @functools.lru_cache(maxsize=None)
    def cached(self):
        return 3

    @classmethod
    @functools.lru_cache(maxsize=None)
    def cached_class(cls):
        return 4


case("Descriptors.full", "Descriptors.full.fget.__code__")
for _accessor, _synonym in (("fget", "getter"), ("fset", "setter"), ("fdel", "deleter")):
    case("Descriptors.full." + _accessor, "Descriptors.full.%s.__code__" % _accessor)
    case("Descriptors.full." + _synonym, "Descriptors.full.%s.__code__" % _accessor)
case("Descriptors.read_only", "Descriptors.read_only.fget.__code__")
case("Descriptors.read_only.fset", refused("not-python-function"))
case("Descriptors.read_only.deleter", refused("not-python-function"))
case("Descriptors.write_only", refused("not-python-function"))
case("Descriptors.write_only.setter", "Descriptors.full.fset.__code__")
case("Descriptors.bound_late", "Descriptors.target.__code__")
case("Descriptors.of_partialmethod", "Descriptors.target.__code__")
case("Descriptors.manager", "Descriptors.manager.__wrapped__.__code__")
case("Descriptors.cached", "Descriptors.cached.__wrapped__.__code__")
case("Descriptors.cached_class", "Descriptors.__dict__['cached_class'].__func__.__wrapped__.__code__")


if sys.version_info >= (3, 8):

    class Later:
        @functools.cached_property
        def once(self):
            return 1

        @functools.singledispatchmethod
        def dispatched(self, x):
            return x

    case("Later.once", "Later.__dict__['once'].func.__code__")
    case("Later.dispatched", "Later.__dict__['dispatched'].func.__code__")


if sys.version_info >= (3, 7):
    import dataclasses

    @dataclasses.dataclass(order=True)
    class Data:
        x: int = 0

        def method(self):
            return self.x

    case("Data.__init__", "Data.__init__.__code__")
    case("Data.__eq__", "Data.__eq__.__code__")
    case("Data.__lt__", "Data.__lt__.__code__")
    # dataclasses guards it against recursion with a functools.wraps wrapper.
    case("Data.__repr__", "Data.__repr__.__wrapped__.__code__")
    case("Data.method", "Data.method.__code__")


# Decorators: the innermost function is the one that an advisory names.


def decorate(wrapped):
    @functools.wraps(wrapped)
    def wrapper(*args, **kwargs):
        return wrapped(*args, **kwargs)

    return wrapper


class ClassDecorator:
    def __init__(self, wrapped):
        functools.update_wrapper(self, wrapped)

    def __call__(self, *args):
        return self.__wrapped__(*args)


class SlottedDecorator:
    __slots__ = ("__wrapped__",)

    def __init__(self, wrapped):
        self.__wrapped__ = wrapped


def opaque(wrapped):
    return lambda *args: wrapped(*args)


def innermost(x):
    return x


once = decorate(innermost)
thrice = decorate(decorate(decorate(innermost)))
by_class = ClassDecorator(innermost)
by_slots = SlottedDecorator(decorate(innermost))
memoized = functools.lru_cache(maxsize=10)(innermost)
part = functools.partial(innermost, 1)
part_of_part = functools.partial(functools.partial(innermost), 1)
part_of_wrapped = functools.partial(thrice, 1)
part_of_method = functools.partial(Base().method)
part_of_c = functools.partial(len)
hidden = opaque(innermost)
dispatched = functools.singledispatch(innermost)


@contextlib.contextmanager
def manager():
    yield


def endless():
    pass


endless.__wrapped__ = endless

for _name in (
    "once thrice by_class by_slots memoized part part_of_part part_of_wrapped dispatched "
    "once.__wrapped__ part.func memoized.__wrapped__"
).split():
    case(_name, "innermost.__code__")
case("manager", "manager.__wrapped__.__code__")
case("part_of_method", "Base.method.__code__")
case("part_of_c", refused("not-python-function"))
# Nothing leads from it to what it calls: it is itself the function of that name.
case("hidden", "hidden.__code__")
case("endless", refused("not-python-function"))

try:
    import wrapt
except ImportError:
    wrapt = None
else:

    @wrapt.decorator
    def wrapt_decorator(wrapped, instance, args, kwargs):
        return wrapped(*args, **kwargs)

    def under_wrapt(x):
        return x

    by_wrapt = wrapt_decorator(under_wrapt)
    by_wrapt_twice = wrapt_decorator(wrapt_decorator(under_wrapt))
    by_proxy = wrapt.ObjectProxy(under_wrapt)

    class WithWrapt:
        @wrapt_decorator
        def method(self):
            return 1

        @wrapt_decorator
        @classmethod
        def klass(cls):
            return 2

        @staticmethod
        @wrapt_decorator
        def static():
            return 3

    for _name in ("by_wrapt", "by_wrapt_twice", "by_proxy"):
        case(_name, "under_wrapt.__code__")
    case("WithWrapt.method", "WithWrapt.__dict__['method'].__wrapped__.__code__")
    case("WithWrapt.klass", "WithWrapt.__dict__['klass'].__wrapped__.__func__.__code__")
    case("WithWrapt.static", "WithWrapt.__dict__['static'].__func__.__wrapped__.__code__")


# Instances in a module, and what hangs on them.

service = Base()
child_service = Child()
slotted = Slots()
described = Descriptors()
shadowing = Base()
shadowing.method = function
by_dict = Base()
by_dict.__dict__["extra"] = innermost
for _number in range(40):
    setattr(by_dict, "attribute_%d" % _number, function)
bound = service.method
bound_class_method = Child.klass
function.attribute = innermost


class Data_descriptor_wins:
    @property
    def value(self):
        return 1


winning = Data_descriptor_wins()
winning.__dict__["value"] = function


class ListChild(list):
    def method(self):
        return 1


class IntChild(int):
    def method(self):
        return 2


class TupleChild(tuple):
    def method(self):
        return 3


list_child = ListChild([1, 2, 3])
list_child.extra = function
int_child = IntChild(1 << 70)
int_child.extra = function
tuple_child = TupleChild((1, 2, 3))
tuple_child.extra = function
error = ValueError("x")
error.extra = function
shelf = types.SimpleNamespace(f=function, nested=types.SimpleNamespace(f=innermost))

case("service.method", "Base.method.__code__")
case("service.inherited", "Base.inherited.__code__")
case("service.static", "Base.static.__code__")
case("service.klass", "Base.klass.__func__.__code__")
case("service.own", "function.__code__")
case("service.__call__", "Base.__call__.__code__")
case("child_service.method", "Child.__dict__['method'].__code__")
case("child_service.own", "function.__code__")
case("slotted.method", "Slots.method.__code__")
case("slotted.held.method", "Base.method.__code__")
case("slotted.held.own", "function.__code__")
case("slotted.empty", refused("not-found"))
case("slotted.empty.method", refused("not-found"))
case("described.full", "Descriptors.full.fget.__code__")
case("described.full.fset", "Descriptors.full.fset.__code__")
case("described.bound_late", "Descriptors.target.__code__")
case("described.cached", "Descriptors.cached.__wrapped__.__code__")
case("shadowing.method", "function.__code__")
case("winning.value", "Data_descriptor_wins.value.fget.__code__")
case("by_dict.extra", "innermost.__code__")
case("by_dict.own", "function.__code__")
case("by_dict.attribute_39", "function.__code__")
case("by_dict.method", "Base.method.__code__")
case("bound", "Base.method.__code__")
case("bound.__func__", "Base.method.__code__")
case("bound.__self__.inherited", "Base.inherited.__code__")
case("bound_class_method", "Base.klass.__func__.__code__")
case("function.attribute", "innermost.__code__")
case("list_child.method", "ListChild.method.__code__")
case("list_child.extra", "function.__code__")
case("int_child.method", "IntChild.method.__code__")
case("int_child.extra", "function.__code__")
case("tuple_child.method", "TupleChild.method.__code__")
case("tuple_child.extra", "function.__code__")
case("error.extra", "function.__code__")
case("shelf.f", "function.__code__")
case("shelf.nested.f", "innermost.__code__")
case("service", refused("not-python-function"))
case("service.missing", refused("not-found"))
case("service.own.missing", refused("not-found"))


# Other modules: re-exports, aliases, C with a Python name.

random_choice = random.choice
case("random_choice", "random.Random.choice.__code__")
case("random:choice", "random.Random.choice.__code__")
case("random:Random.choice", "random.Random.choice.__code__")
case("functools:wraps", "functools.wraps.__code__")
case("re:compile", "re.compile.__code__")
case("re.compile", "re.compile.__code__")
case("abc.ABC.register", "abc.ABCMeta.register.__code__")
case("contextlib:contextmanager", "contextlib.contextmanager.__code__")
case("contextlib:ExitStack.enter_context", "contextlib.ExitStack.enter_context.__code__")
case("_frozen_importlib:_find_spec", "sys.modules['_frozen_importlib']._find_spec.__code__")
case("collections:OrderedDict.fromkeys", refused("not-python-function"))
case("random:random", refused("not-python-function"))
case("random:Random.random", refused("not-python-function"))


# Local functions and classes, in the constants of the function that makes them.


def outer(free):
    def inner(x):
        return x + free

    def with_inner():
        def innermost_local():
            return free

        return innermost_local

    class Local:
        def method(self):
            return free

        class Nested:
            def method(self):
                return 1

    unnamed = lambda: free  # noqa: E731
    return inner, with_inner, Local, unnamed


def twice(flag):
    if flag:

        def same():
            return 1
    else:

        def same():
            return 2

    return same


def makes_class():
    class Local:
        def method(self):
            def deep():
                return 1

            return deep

    return Local


decorated_outer = decorate(outer)

case("outer", "outer.__code__")
case("outer.<locals>.inner", "code_in(outer, 'inner')")
case("outer.<locals>.with_inner", "code_in(outer, 'with_inner')")
case("outer.<locals>.with_inner.<locals>.innermost_local", "code_in(outer, 'with_inner', 'innermost_local')")
case("outer.<locals>.Local.method", "code_in(outer, 'Local', 'method')")
case("outer.<locals>.Local.Nested.method", "code_in(outer, 'Local', 'Nested', 'method')")
case("outer.<locals>.<lambda>", "code_in(outer, '<lambda>')")
case("makes_class.<locals>.Local.method.<locals>.deep", "code_in(makes_class, 'Local', 'method', 'deep')")
case("decorated_outer.<locals>.inner", "code_in(outer, 'inner')")
case("decorate.<locals>.wrapper", "code_in(decorate, 'wrapper')")
case("once.<locals>.missing", refused("not-found"))
case("outer.<locals>.missing", refused("not-found"))
case("outer.<locals>.free", refused("not-found"))
case("outer.<locals>.with_inner.innermost_local", refused("not-found"))
case("outer.<locals>.Local.<locals>.method", refused("not-found"))
case("outer.<locals>.Local", refused("not-python-function"))
# Two functions of one qualified name: which is meant cannot be told.
case("twice.<locals>.same", refused("ambiguous"))
case("outer.inner", refused("not-found"))
case("outer.<locals>", refused("not-found"))
case("Base.<locals>.method", refused("not-found"))
case("len_alias.<locals>.x", refused("not-found"))

len_alias = len

if sys.version_info >= (3, 12):
    # The compiler puts these behind code objects for their type parameters.
    exec(
        "def generic_outer():\n"
        "    def inner[T](x: T): return x\n"
        "    class Local[T]:\n"
        "        def method(self): return 1\n"
        "    return inner, Local\n"
        "def generic[T](x: T): return x\n"
    )
    case("generic", "generic.__code__")
    case("generic_outer.<locals>.inner", "code_in(generic_outer, '<generic parameters of inner>', 'inner')")
    case(
        "generic_outer.<locals>.Local.method",
        "code_in(generic_outer, '<generic parameters of Local>', 'Local', 'method')",
    )


# What is no Python function, or is not there.

number = 1
nothing = None


class Empty:
    pass


class Lazy:
    def __getattr__(self, name):
        raise RuntimeError("resolving a target ran code of the application: " + name)

    @property
    def value(self):
        raise RuntimeError("resolving a target ran code of the application")


class LazyMeta(type):
    def __getattribute__(cls, name):
        if name in ("method", "missing"):
            raise RuntimeError("resolving a target ran code of the application: " + name)
        return super().__getattribute__(name)


class LazyClass(metaclass=LazyMeta):
    def method(self):
        return 1


class LazyModule(types.ModuleType):
    def __getattr__(self, name):
        raise RuntimeError("resolving a target ran code of the application: " + name)


lazy = Lazy()
sys.modules["targets_lazy"] = lazy_module = LazyModule("targets_lazy")
lazy_module.f = function
sys.modules["targets_none"] = None
sys.modules["targets_object"] = service
sys.modules["targets.dotted"] = types.ModuleType("targets.dotted")
sys.modules["targets.dotted"].f = function

case("targets_lazy:f", "function.__code__")
case("targets_lazy:missing", refused("not-found"))
case("targets_none:f", refused("not-found"))
case("targets_object:method", "Base.method.__code__")
case("targets_object:missing", refused("not-found"))
case("targets.dotted:f", "function.__code__")
case("targets:dotted.f", refused("not-found"))
case("targets_missing:f", refused("not-imported"))
case("targets.missing:f", refused("not-imported"))
case("lazy.value", "Lazy.value.fget.__code__")
case("lazy.missing", refused("not-found"))
case("LazyClass.method", "type.__getattribute__(LazyClass, '__dict__')['method'].__code__")
case("LazyClass.missing", refused("not-found"))
case("missing", refused("not-found"))
case("missing.method", refused("not-found"))
case("Base.missing", refused("not-found"))
case("Base.method.missing", refused("not-found"))
case("Base", refused("not-python-function"))
case("Base.Nested", refused("not-python-function"))
case("Empty.__init__", refused("not-python-function"))
case("Empty.__new__", refused("not-python-function"))
case("Empty.__call__", refused("not-python-function"))
case("ListChild.append", refused("not-python-function"))
case("int_child.bit_length", refused("not-python-function"))
case("WithMeta.mro", refused("not-python-function"))
case("number", refused("not-python-function"))
case("number.missing", refused("not-found"))
case("nothing", refused("not-python-function"))
case("re", refused("not-python-function"))
case("len_alias", refused("not-python-function"))
case("builtins:len", refused("not-python-function"))
case("builtins:dict.get", refused("not-python-function"))
case("builtins:dict.fromkeys", refused("not-python-function"))
case("builtins:str.join", refused("not-python-function"))
case("builtins:missing", refused("not-found"))
case("sys:exit", refused("not-python-function"))
case("types:FunctionType", refused("not-python-function"))
case("types:FunctionType.__code__", refused("not-python-function"))


def table():
    """Return the cases: target, address of the code object or 0, kind of refusal or ''."""
    rows = []
    for target, expected in CASES:
        if isinstance(expected, dict):
            rows.append([target, 0, expected["refused"]])
            continue
        code = eval(expected, globals())
        if not isinstance(code, types.CodeType):
            raise TypeError("%s: %s is %r, no code object" % (target, expected, code))
        rows.append([target, id(code), ""])
    return rows

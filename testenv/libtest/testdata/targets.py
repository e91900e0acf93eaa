"""Names the functions that a module of CPython's test suite is made of and runs.

    python targets.py test_json

imports test.test_json and prints what is to be patched while its tests run, as JSON:

    targets  "module:qualname" of every Python function of the module itself, of all that it
             imports and of the test runner, nearest first, MAX at most
    tests    by a test's id, the target that is its function
    left     how many functions of the tests, or of what they test, were left out because of MAX
"""

import importlib
import json
import sys
import types
import unittest

MAX = 10000


def function_of(value):
    """The Python function behind a decorated one, a property or a method, or None."""
    for _ in range(32):
        if isinstance(value, (staticmethod, classmethod)):
            value = value.__func__
        elif isinstance(value, property):
            value = value.fget
        else:
            try:
                inner = vars(value).get("__wrapped__")
            except TypeError:
                inner = None
            if inner is None:
                break
            value = inner
    return value if isinstance(value, types.FunctionType) else None


class Functions:
    def __init__(self):
        self.targets = []
        self.by_function = {}  # id of a function: its target
        self.classes = {}  # a class: its "module:qualname"
        self.modules = {}  # id of a module that is done: the module
        self.functions = []  # keeps the ids above

    def add_module(self, module, prefix):
        """Adds what a module defines. prefix is where it is found: "module:" or "other:name."."""
        if id(module) in self.modules:
            return
        self.modules[id(module)] = module
        for name, value in sorted(vars(module).items()):
            self.add(module.__name__, prefix + name, value)

    def add(self, module, path, value):
        if isinstance(value, types.ModuleType):
            # A second copy of a module, such as import_fresh_module() makes, is found here alone.
            if sys.modules.get(value.__name__) is not value:
                self.add_module(value, path + ".")
            return
        if issubclass(type(value), type):  # isinstance() asks the value, which may be a proxy
            if getattr(value, "__module__", None) == module and value not in self.classes:
                self.classes[value] = path
                for name, member in sorted(vars(value).items()):
                    self.add(module, path + "." + name, member)
            return
        function = function_of(value)
        if function is None or function.__module__ != module or id(function) in self.by_function:
            return
        self.functions.append(function)
        self.by_function[id(function)] = path
        self.targets.append(path)

    def tests(self):
        """The targets of test methods, inherited ones too."""
        found = {}
        for cls, target in self.classes.items():
            if not issubclass(cls, unittest.TestCase):
                continue
            for name in dir(cls):
                function = name.startswith("test") and function_of(getattr(cls, name, None))
                if function and id(function) in self.by_function:
                    key = "%s.%s.%s" % (cls.__module__, cls.__qualname__, name)
                    found[key] = self.by_function[id(function)]
        return found


def import_tests(name):
    """Imports a test module as the runner does: load_tests() imports what a package is made of."""
    try:
        unittest.defaultTestLoader.loadTestsFromModule(importlib.import_module(name))
    except unittest.SkipTest:
        pass


def main(name):
    out, sys.stdout = sys.stdout, sys.stderr  # some modules print while they are imported
    name = "test." + name
    importlib.import_module("test.libregrtest.main")
    import_tests(name)

    subject = name[len("test.test_") :]

    def within(module, package):
        return module == package or module.startswith(package + ".")

    def distance(module):
        if within(module, name):
            return 0
        if within(module, "test.libregrtest"):
            return 3
        if within(module, "test") or within(module, subject) or within(module, "_py" + subject):
            return 1
        return 2

    functions = Functions()
    modules = [
        module
        for module in list(sys.modules)
        if module != "__main__" and isinstance(sys.modules[module], types.ModuleType)
    ]
    near = 0
    for module in sorted(modules, key=distance):
        if sys.modules[module].__name__ == module:
            functions.add_module(sys.modules[module], module + ":")
        if distance(module) <= 1:
            near = len(functions.targets)
    json.dump(
        {
            "targets": functions.targets[:MAX],
            "tests": functions.tests(),
            "left": max(0, near - MAX),
        },
        out,
    )


main(sys.argv[1])

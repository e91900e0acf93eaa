"""1,000 functions that are targets."""

COUNT = 1000

for _number in range(COUNT):
    exec("def f%d(x):\n    return x + %d" % (_number, _number))

FUNCTIONS = [globals()["f%d" % number] for number in range(COUNT)]


def patched():
    """How many have a hook, the last constant: the engine may patch the first before the last is made."""
    last = (function.__code__.co_consts[-1:] for function in FUNCTIONS)
    return sum(1 for consts in last if consts and not isinstance(consts[0], (int, type(None))))

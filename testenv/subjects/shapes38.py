"""The functions of ``shapes`` whose syntax CPython 3.6 and 3.7 do not have."""


def keywords(a, /, b=2, *args, c=3, **kwargs):
    """Have parameters of each kind."""
    return a + b + sum(args) + c + sum(kwargs.values())

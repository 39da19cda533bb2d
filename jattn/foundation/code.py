"""What a Python function is made of: its code, and the objects that the code can reach."""

import types
from collections.abc import Callable, Hashable
from typing import Any

from jax.core import Tracer


class Only:
    """Equal to the same object alone, which it keeps alive so that its address is not given to another."""

    __slots__ = ("held",)

    def __init__(self, held: Any):
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Only) and self.held is other.held

    def __hash__(self) -> int:
        return id(self.held)


def same_code(function: Callable[..., Any]) -> Hashable | None:
    """A value that two functions share only if they run the same code on the same objects; None if none is known.

    A `lambda` that is evaluated again is a new function with the same code. The objects it can reach are those in its
    closure, its defaults, and the globals that its code names, with the attributes that it names of modules.
    """
    seen: set[int] = set()

    def of_object(value: Any, names: frozenset[str]) -> Hashable:
        if value is None or isinstance(value, (bool, int, str, float)):
            return type(value), repr(value)
        if isinstance(value, Tracer):
            return Only(object())  # not to be kept alive
        if isinstance(value, tuple):
            return tuple(of_object(one, names) for one in value)
        if isinstance(value, types.ModuleType) and id(value) not in seen:
            seen.add(id(value))
            reached = sorted(name for name in names if name in vars(value))
            return Only(value), tuple(of_object(vars(value)[name], names) for name in reached)
        if isinstance(value, types.FunctionType) and id(value) not in seen and value.__globals__ is space:
            seen.add(id(value))
            return of_function(value)
        return Only(value)

    def of_function(one: types.FunctionType) -> Hashable:
        names = names_in(one.__code__)
        cells = []
        for cell in one.__closure__ or ():
            try:
                cells.append(of_object(cell.cell_contents, names))
            except ValueError:  # not assigned yet
                cells.append(Only(cell))
        reached = sorted(name for name in names if name in one.__globals__)
        return (
            one.__code__,
            tuple(cells),
            tuple(of_object(value, names) for value in one.__defaults__ or ()),
            tuple((name, of_object(value, names)) for name, value in sorted((one.__kwdefaults__ or {}).items())),
            tuple((name, of_object(one.__globals__[name], names)) for name in reached),
        )

    if not isinstance(function, types.FunctionType):
        return Only(function)
    space = function.__globals__
    return Only(space), of_function(function)


def names_in(code: types.CodeType) -> frozenset[str]:
    """Every global and attribute that code names, with the code nested in it."""
    nested = (names_in(one) for one in code.co_consts if isinstance(one, types.CodeType))
    return frozenset(code.co_names).union(*nested)

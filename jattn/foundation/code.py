"""The code of a Python function, and the objects that the code can reach."""

import types
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer


class Only:
    """Equal only to the same object. Keeps the object alive so that its address is not reused.

    Arrays may be large and are not kept alive; once one is deleted, nothing is equal to it.
    """

    __slots__ = ("_address", "_held")

    def __init__(self, held: Any):
        self._held = weakref.ref(held) if isinstance(held, jax.Array) else lambda: held
        self._address = id(held)

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Only) and self._address == other._address and self._held() is other._held() is not None
        )

    def __hash__(self) -> int:
        return self._address


def same_code(function: Callable[..., Any]) -> Hashable | None:
    """A value that two functions share only if they run the same code on the same objects; None if none is known.

    A `lambda` that is evaluated again is a new function with the same code. The objects that it can reach are those in
    its closure, its defaults, the globals that its code names, and the attributes that it names of modules. Of arrays
    only shape and dtype count: what a function computes with them is in its jaxpr, and in that of its derivative.
    """
    seen: set[int] = set()

    def of_object(value: Any, names: frozenset[str]) -> Hashable:
        if value is None or isinstance(value, (bool, int, str, float)):
            return type(value), repr(value)
        if isinstance(value, Tracer):
            return Only(object())  # do not keep a tracer alive
        if isinstance(value, (jax.Array, np.ndarray)):
            return "array", value.shape, value.dtype
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
    """All globals and attributes that a code object names, including nested code."""
    nested = (names_in(one) for one in code.co_consts if isinstance(one, types.CodeType))
    return frozenset(code.co_names).union(*nested)


def copied(function: types.FunctionType, replace: Callable[[Any, Callable[[Any], Any]], Any]) -> Any:
    """A copy of the function in which the objects that it reaches are replaced, in its closure, defaults and globals.

    Args:
        function: the function. Returned unchanged if nothing that it reaches is replaced.
        replace: called with an object, and with a function that copies functions in the same way; returns the
            replacement.
    """
    copies: dict[int, Any] = {}

    def of_function(one: types.FunctionType) -> Any:
        if id(one) in copies:
            return copies[id(one)]
        copies[id(one)] = one  # where it reaches itself
        cells, changed = [], False
        for cell in one.__closure__ or ():
            try:
                held = cell.cell_contents
            except ValueError:  # not assigned yet
                cells.append(cell)
                continue
            replaced = replace(held, of_function)
            changed |= replaced is not held
            cells.append(types.CellType(replaced))
        named = {name: one.__globals__[name] for name in names_in(one.__code__) if name in one.__globals__}
        replacements = {name: replace(value, of_function) for name, value in named.items()}
        replacements = {name: value for name, value in replacements.items() if value is not named[name]}
        defaults = tuple(replace(value, of_function) for value in one.__defaults__ or ())
        changed |= any(new is not old for new, old in zip(defaults, one.__defaults__ or (), strict=True))
        by_name = {name: replace(value, of_function) for name, value in (one.__kwdefaults__ or {}).items()}
        changed |= any(new is not (one.__kwdefaults__ or {})[name] for name, new in by_name.items())
        if not changed and not replacements:
            return one
        made = types.FunctionType(
            one.__code__, {**one.__globals__, **replacements}, one.__name__, defaults or None, tuple(cells)
        )
        made.__kwdefaults__, made.__qualname__ = by_name or None, one.__qualname__
        copies[id(one)] = made
        return made

    return of_function(function)

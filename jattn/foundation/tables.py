"""NumPy inside a function that JAX traces: tables that it looks up, and `np` where it should say `jnp`.

NumPy cannot index an array by a traced number, nor compute with one. A function written so is copied, with what it
closes over and the globals that it names replaced: arrays, and lists and tuples of numbers, by `Table`s; NumPy itself
by `jax.numpy`.
"""

import types
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .code import names_in


class Table(np.ndarray):
    """A NumPy array that may be indexed by traced numbers; the result is then an array of JAX."""

    def __getitem__(self, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        if any(isinstance(part, Tracer) for part in parts):
            return jnp.asarray(np.asarray(self))[index]
        return super().__getitem__(index)


def with_tables(function: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of the function that looks up tables and computes in JAX; the function itself if it names none.

    Functions in its closure, and those of its own module that it names, are copied likewise.

    >>> import jax
    >>> table = np.arange(5) ** 2
    >>> jax.jit(with_tables(lambda i: np.abs(table[i] - 1)))(3)
    Array(8, dtype=int32)
    """
    copies: dict[int, Any] = {}

    def of_object(value: Any) -> Any:
        if value is np:
            return jnp
        if type(value) is np.ndarray and value.dtype != object:
            return value.view(Table)
        if type(value) in (list, tuple) and value:
            numbers = _numbers(value)
            if numbers is not None:
                return numbers.view(Table)
            parts = [of_object(one) for one in value]
            return type(value)(parts) if any(a is not b for a, b in zip(parts, value, strict=True)) else value
        if isinstance(value, types.FunctionType) and (value.__globals__ is space or _is_a_users(value)):
            return of_function(value)
        return value

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
            replaced = of_object(held)
            changed |= replaced is not held
            cells.append(types.CellType(replaced))
        named = {name: one.__globals__[name] for name in names_in(one.__code__) if name in one.__globals__}
        replacements = {name: of_object(value) for name, value in named.items()}
        replacements = {name: value for name, value in replacements.items() if value is not named[name]}
        defaults = tuple(of_object(value) for value in one.__defaults__ or ())
        changed |= any(new is not old for new, old in zip(defaults, one.__defaults__ or (), strict=True))
        if not changed and not replacements:
            return one
        made = types.FunctionType(
            one.__code__, {**one.__globals__, **replacements}, one.__name__, defaults or None, tuple(cells)
        )
        made.__kwdefaults__, made.__qualname__ = one.__kwdefaults__, one.__qualname__
        copies[id(one)] = made
        return made

    if not isinstance(function, types.FunctionType):
        return function
    space = function.__globals__
    return of_function(function)


def _is_a_users(function: types.FunctionType) -> bool:
    """Whether a function made inside another is not one that a library made."""
    return bool(function.__closure__) and (function.__module__ or "").split(".")[0] not in ("jax", "jaxlib", "numpy")


def _numbers(value: Any) -> np.ndarray | None:
    """Nested lists of numbers as an array; None if they are something else."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError):
        return None
    return array if array.dtype.kind in "biuf" else None

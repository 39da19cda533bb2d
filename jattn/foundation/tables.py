"""NumPy inside a function that JAX traces: lookup tables, and `np` in place of `jnp`.

NumPy cannot index an array by a traced number or compute with one. Such a function is copied, and what it closes over
or names as a global is replaced: arrays, lists and tuples of numbers by `Table`s, and NumPy by `jax.numpy`.
"""

import types
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .code import copied


class Table(np.ndarray):
    """A NumPy array that can be indexed by traced numbers. The result is then a JAX array."""

    def __getitem__(self, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        if any(isinstance(part, Tracer) for part in parts):
            return jnp.asarray(np.asarray(self))[index]
        return super().__getitem__(index)


def with_tables(function: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of the function that looks up tables and computes in JAX; the same function if nothing is replaced.

    Functions in its closure, and functions of its own module that it names, are copied too.

    >>> import jax
    >>> table = np.arange(5) ** 2
    >>> jax.jit(with_tables(lambda i: np.abs(table[i] - 1)))(3)
    Array(8, dtype=int32)
    """

    def of_object(value: Any, copy: Callable[[Any], Any]) -> Any:
        if value is np:
            return jnp
        if type(value) is np.ndarray and value.dtype != object:
            return value.view(Table)
        if type(value) in (list, tuple) and value:
            numbers = _numbers(value)
            if numbers is not None:
                return numbers.view(Table)
            parts = [of_object(one, copy) for one in value]
            return type(value)(parts) if any(a is not b for a, b in zip(parts, value, strict=True)) else value
        if isinstance(value, types.FunctionType) and (value.__globals__ is space or _is_a_users(value)):
            return copy(value)
        return value

    if not isinstance(function, types.FunctionType):
        return function
    space = function.__globals__
    return copied(function, of_object)


def _is_a_users(function: types.FunctionType) -> bool:
    """Whether a closure is a user's own function, not one that a library made."""
    return bool(function.__closure__) and (function.__module__ or "").split(".")[0] not in ("jax", "jaxlib", "numpy")


def _numbers(value: Any) -> np.ndarray | None:
    """Nested lists of numbers as an array; None if they are something else."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError):
        return None
    return array if array.dtype.kind in "biuf" else None

"""What is known at every position of the queries or keys: kept so where that is affordable, and computed exactly.

A value that depends on one side only (`document[q]`, `k % 64`, `searchsorted(starts, k)`) is computed at each position
of that side. This takes time proportional to the length and, for integers, is exact for any function. Only where both
sides meet (`document[q] == document[k]`) are the values of a tile replaced by their minimum and maximum.

Primitives on known integers and booleans are simply computed. Common ones use NumPy operations of the same meaning
(integers wrap around in both). Others (sorting, `argmax`, sums, gathers along the axes of a table) run the primitive
itself. Floats are computed only by primitives that select and do not round: the result of float arithmetic differs
between devices, so it stays an interval (see `bounds.widened`).
"""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import bounds
from .bounds import Context, Interval

POSITIONS = 2**22
"""The most elements of an array that is kept at every position, if the grid of tiles has fewer."""
OWN = 8
"""The most own elements that a value may have for each tile of the largest grid."""

# --- at each position, or at tiles ---


def _is_fine(context: Context, shape: tuple[int, ...], side: int) -> bool:
    """Whether an array has an entry for each position of a side (0: queries, 1: keys)."""
    length, tile = context.cuts[side]
    return tile > 1 and length > 1 and shape[context.rank - 2 + side] == length


def at_tiles(context: Context, interval: Interval, side: int) -> Interval:
    """Reduce one side to the minimum and maximum of each tile."""
    if not _is_fine(context, interval.lo.shape, side) and not _is_fine(context, interval.hi.shape, side):
        return interval
    length, tile = context.cuts[side]
    axis = context.rank - 2 + side
    logical = interval.lo.dtype == np.bool_
    lo = _reduced(context.xp, interval.lo, axis, length, tile, "all" if logical else "min")
    return Interval(lo, _reduced(context.xp, interval.hi, axis, length, tile, "any" if logical else "max"))


def _reduced(xp: Any, value: Any, axis: int, length: int, tile: int, method: str) -> Any:
    if value.shape[axis] != length:
        return value
    if xp is np:
        function = {"all": np.logical_and, "any": np.logical_or, "min": np.minimum, "max": np.maximum}[method]
        return function.reduceat(value, np.arange(0, length, tile), axis=axis)
    missing = -length % tile
    if missing:
        padding = [(0, 0)] * value.ndim
        padding[axis] = (0, missing)
        value = jnp.pad(value, padding, mode="edge")
    shape = (*value.shape[:axis], -1, tile, *value.shape[axis + 1 :])
    return getattr(value.reshape(shape), method)(axis + 1)


def together(context: Context, operands: list[Interval], own: int | None = None) -> list[Interval] | None:
    """Bring the operands of an equation to a common resolution; None if the result would be too large even then.

    Args:
        context: see `Context`.
        operands: the operands of one equation.
        own: the number of own elements of the result; by default that of the broadcast operands.
    """

    def shapes() -> list[tuple[int, ...]]:
        return [bound.shape for one in operands for bound in one]

    def size() -> int:
        if own is None:
            return int(np.prod(np.broadcast_shapes(*shapes())))
        return own * int(np.prod(np.broadcast_shapes(*(shape[: context.rank] for shape in shapes()))))

    for side in (0, 1):
        axis, other = context.rank - 2 + side, context.rank - 1 - side
        fine = any(_is_fine(context, shape, side) for shape in shapes())
        coarse = any(shape[axis] > 1 and not _is_fine(context, shape, side) for shape in shapes())
        if fine and (coarse or any(shape[other] > 1 for shape in shapes())):
            operands = [at_tiles(context, one, side) for one in operands]
    if not operands or size() <= max(context.limit, POSITIONS):
        return operands
    operands = [at_tiles(context, at_tiles(context, one, 0), 1) for one in operands]
    largest = max(int(np.prod(shape)) for shape in shapes())
    return operands if size() <= max(OWN * context.limit, POSITIONS, largest) else None


# --- computed exactly ---

_ARRAY: dict[str, Callable[..., Any]] = {
    "add": lambda xp, x, y: x + y,
    "add_any": lambda xp, x, y: x + y,
    "sub": lambda xp, x, y: x - y,
    "mul": lambda xp, x, y: x * y,
    "neg": lambda xp, x: -x,
    "and": lambda xp, x, y: x & y,
    "or": lambda xp, x, y: x | y,
    "xor": lambda xp, x, y: x ^ y,
    "not": lambda xp, x: ~x,
    "eq": lambda xp, x, y: x == y,
    "ne": lambda xp, x, y: x != y,
    "lt": lambda xp, x, y: x < y,
    "le": lambda xp, x, y: x <= y,
    "gt": lambda xp, x, y: x > y,
    "ge": lambda xp, x, y: x >= y,
    "max": lambda xp, x, y: xp.maximum(x, y),
    "min": lambda xp, x, y: xp.minimum(x, y),
    "abs": lambda xp, x: abs(x),
    "sign": lambda xp, x: xp.sign(x),
    "square": lambda xp, x: x * x,
}
"""Primitives that mean the same in NumPy and XLA for all integers and booleans. Division, shifts and conversions are
not among them: devices differ in division by zero, shifts past the width, and numbers that do not fit."""

_SIGNED = {_ARRAY["sign"], _ARRAY["abs"]}

_COMPUTED = {
    "argmax", "argmin", "clz", "cummax", "cummin", "cumprod", "cumsum", "dot_general", "gather", "pad",
    "population_count", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum",
    "reduce_xor", "rev", "sort", "top_k", "transpose",
}  # fmt: skip
_PICK = _COMPUTED - {"clz", "cumprod", "cumsum", "dot_general", "population_count", "reduce_prod", "reduce_sum"}
"""Primitives that return one of their operands or its index, so floats are not rounded."""


def by_array(context: Context, equation: Any, operands: list[Interval]) -> list[Interval] | None:
    """Compute an equation on known integers and booleans with a NumPy operation; None if there is none."""
    function = _ARRAY.get(equation.primitive.name)
    if function is None or not all(_is_plain(atom.aval) for atom in (*equation.invars, *equation.outvars)):
        return None
    if function in _SIGNED and operands[0].lo.dtype.kind == "u":
        return None
    if not all(bounds.is_point(context, one) for one in operands):
        return None
    value = function(context.xp, *(one.lo for one in operands))
    return [Interval(value, value)]


def by_primitive(context: Context, equation: Any, operands: list[Interval]) -> list[Interval] | None:
    """Compute an equation on known numbers with the primitive itself; None if devices may differ."""
    name = equation.primitive.name
    if not operands or name not in _COMPUTED or not all(bounds.is_point(context, one) for one in operands):
        return None
    avals = [atom.aval for atom in (*equation.invars, *equation.outvars)]
    if all(_is_plain(aval) for aval in avals) or (name in _PICK and _are_finite(context, avals, operands)):
        return _bound(context, equation, operands)
    return None


def _is_plain(aval: Any) -> bool:
    return aval.dtype == np.bool_ or bounds.is_integer(aval.dtype)


def _are_finite(context: Context, avals: list[Any], operands: list[Interval]) -> bool:
    """Whether all floats are finite. NaN may stand for "unknown"."""
    if context.xp is not np or not all(_is_plain(aval) or bounds.is_float(aval.dtype) for aval in avals):
        return False
    return all(one.lo.dtype.kind in "bui" or bool(np.isfinite(one.lo).all()) for one in operands)


def _on_host() -> Any:
    """A context in which small arrays are computed on the host at trace time."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX was told to look for no CPU
        return contextlib.nullcontext()


def _bound(context: Context, equation: Any, operands: list[Interval]) -> list[Interval] | None:
    """Run the primitive over all positions at once."""
    rank = context.rank
    lead = np.broadcast_shapes(*(one.lo.shape[:rank] for one in operands))
    results = max(int(np.prod(atom.aval.shape)) for atom in (*equation.invars, *equation.outvars))
    count = int(np.prod(lead))
    if count * results > max(OWN * context.limit, POSITIONS, results):
        return None
    room = 1 << (count - 1).bit_length() if context.xp is np else count  # round up: each size is compiled
    parameters = equation.primitive.get_bind_params(equation.params)

    def one(*values):
        found = equation.primitive.bind(*values, **parameters)
        return found if equation.primitive.multiple_results else [found]

    values, axes = [], []
    for operand, atom in zip(operands, equation.invars, strict=True):
        own, value = atom.aval.shape, operand.lo.astype(atom.aval.dtype)
        if all(size == 1 for size in value.shape[:rank]):
            values.append(context.xp.broadcast_to(value.reshape(value.shape[rank:]), own))
            axes.append(None)
        else:
            value = context.xp.broadcast_to(value, (*lead, *own)).reshape(-1, *own)
            values.append(context.xp.pad(value, [(0, room - count), *[(0, 0)] * len(own)]))
            axes.append(0)
    mapped = any(axis is not None for axis in axes)
    function = jax.vmap(one, tuple(axes)) if mapped else one
    if context.xp is np:
        with jax.ensure_compile_time_eval(), _on_host():
            found = [np.asarray(value) for value in function(*values)]
    else:
        found = function(*values)
    answers = []
    for value, atom in zip(found, equation.outvars, strict=True):
        value = value[:count] if mapped else value
        value = value.reshape((*(lead if mapped else (1,) * rank), *atom.aval.shape))
        answers.append(bounds.stored(context, Interval(value, value)))
    return answers

"""How finely a value is known along queries and keys: at every position, or only as the extremes of a tile.

A value that depends on one side only (`document[q]`, `k % 64`, `searchsorted(starts, k)`) is computed at each position
of that side. This takes time proportional to the length and, for integers, is exact for any function. Only where both
sides meet (`document[q] == document[k]`) are the values of a tile replaced by their minimum and maximum.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from .bounds import Context, Interval

POSITIONS = 2**22
"""The most elements of an array that is kept at every position, if the grid of tiles has fewer."""
OWN = 8
"""The most own elements that a value may have for each tile of the largest grid."""


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

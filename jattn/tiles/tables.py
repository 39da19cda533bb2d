"""Looking up a table at an interval of indices: the smallest and the largest entry in the range."""

import math
from typing import Any

import numpy as np

from .bounds import Context, Interval


def whole(context: Context, table: Interval) -> Interval:
    """The bounds of all entries; the table's own axes are kept with size 1."""
    axes = tuple(range(context.rank, table.lo.ndim))
    if table.lo.dtype == np.bool_:
        return Interval(table.lo.all(axes, keepdims=True), table.hi.any(axes, keepdims=True))
    return Interval(table.lo.min(axes, keepdims=True), table.hi.max(axes, keepdims=True))


def look_up(context: Context, table: Interval, indices: list[Interval]) -> Interval:
    """The bounds of `table[index, ...]`, each index inside its axis; the own axes are kept with size 1.

    Exact for a table with one axis (by minima over windows of doubling width) and for boolean tables (by counting).
    """
    own = len(indices)
    if table.lo.dtype == np.bool_:
        found = Interval(
            _count(context, ~table.lo, indices) == 0,
            _count(context, table.hi, indices) > 0,
        )
    elif own == 1:
        xp = context.xp
        found = Interval(
            _window(context, table.lo, indices[0], xp.minimum), _window(context, table.hi, indices[0], xp.maximum)
        )
    else:
        return whole(context, table)
    return Interval(*(bound.reshape(bound.shape + (1,) * own) for bound in found))


def _place(context: Context, table: Any, indices: tuple) -> Any:
    """`table[..., *indices]` where the leading axes of the table broadcast with the indices."""
    lead = []
    for axis in range(context.rank):
        size = table.shape[axis]
        shape = [1] * context.rank
        shape[axis] = size
        lead.append(np.arange(size).reshape(shape))
    return table[(*lead, *indices)]


def _count(context: Context, flags: Any, indices: list[Interval]) -> Any:
    """How many flags are set in the box of the indices (inclusion and exclusion on prefix sums)."""
    xp = context.xp
    prefix = flags.astype(np.int32)
    for axis in range(context.rank, flags.ndim):
        padding = [(0, 0)] * flags.ndim
        padding[axis] = (1, 0)
        prefix = xp.pad(xp.cumsum(prefix, axis=axis, dtype=np.int32), padding)
    total = 0
    for corner in range(2 ** len(indices)):
        uppers = [corner >> bit & 1 for bit in range(len(indices))]
        place = tuple(index.hi + 1 if upper else index.lo for index, upper in zip(indices, uppers, strict=True))
        sign = -1 if (len(indices) - sum(uppers)) % 2 else 1
        total = total + sign * _place(context, prefix, place)
    return total


def _window(context: Context, entries: Any, index: Interval, best: Any) -> Any:
    """`best` over `entries[..., lo : hi + 1]`: two windows of the largest power of two that fits cover the range."""
    xp = context.xp
    length = entries.shape[-1]
    span = index.hi - index.lo + 1
    result = _place(context, entries, (index.lo,))
    for level in range(1, int(math.log2(length)) + 1):
        width = 2**level
        entries = best(entries[..., : -width // 2], entries[..., width // 2 :])
        last = entries.shape[-1] - 1
        first = _place(context, entries, (xp.minimum(index.lo, last),))
        second = _place(context, entries, (xp.clip(index.hi - width + 1, 0, last),))
        result = xp.where(span >= width, best(first, second), result)
    return result

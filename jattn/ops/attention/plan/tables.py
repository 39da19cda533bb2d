"""Table lookups at an interval of indices: the minimum and maximum of the entries in the range."""

from typing import Any

import numpy as np

from . import bounds
from .bounds import Context, Interval

BOXES = 2**22
"""The most entries of all tables of minima that are built for two indices that are ranges."""


def whole(context: Context, table: Interval, axes: int | None = None) -> Interval:
    """The bounds over the first `axes` own axes (by default all), which are kept with size 1."""
    over = tuple(range(context.rank, table.lo.ndim if axes is None else context.rank + axes))
    if table.lo.dtype == np.bool_:
        return Interval(table.lo.all(over, keepdims=True), table.hi.any(over, keepdims=True))
    return Interval(table.lo.min(over, keepdims=True), table.hi.max(over, keepdims=True))


def look_up(context: Context, table: Interval, indices: list[Interval]) -> Interval:
    """The bounds of `table[index, ...]`, for indices in range. The indexed axes are kept with size 1.

    Further own axes of the table are kept. Exact if at most one index is a range (by minima over windows of doubling
    width), for two ranges in small tables, and for booleans (by counting).

    Args:
        context: see `Context`.
        table: `[rank..., one axis per index, further own axes]`, at full size.
        indices: intervals of scalars, `[rank...]`.
    """
    points = [bounds.is_point(context, index) for index in indices]
    if all(points):
        place = [index.lo for index in indices]
        found = bounds.same_for_both(table, lambda entries: _place(context, entries, place))
    elif table.lo.dtype == np.bool_:
        found = Interval(
            _count(context, ~table.lo, indices, points) == 0,
            _count(context, table.hi, indices, points) > 0,
        )
    else:
        levels = [
            size.bit_length() for size, point in zip(table.lo.shape[context.rank :], points, strict=False) if not point
        ]
        if len(levels) > 2 or (len(levels) == 2 and table.lo.size * np.prod(levels) > BOXES):
            return whole(context, table, len(indices))
        xp = context.xp
        found = Interval(
            _box(context, table.lo, indices, points, xp.minimum), _box(context, table.hi, indices, points, xp.maximum)
        )
    ones = (1,) * len(indices)
    rank = context.rank
    return bounds.same_for_both(found, lambda bound: bound.reshape((*bound.shape[:rank], *ones, *bound.shape[rank:])))


def _place(context: Context, table: Any, indices: list[Any]) -> Any:
    """`table[..., *indices]`, where the leading axes of the table broadcast with the indices."""
    lead = []
    for axis in range(context.rank):
        size = table.shape[axis]
        shape = [1] * context.rank
        shape[axis] = size
        lead.append(np.arange(size).reshape(shape))
    return table[(*lead, *indices)]


def _count(context: Context, flags: Any, indices: list[Interval], points: list[bool]) -> Any:
    """The number of set flags in the box of the indices (inclusion-exclusion on prefix sums)."""
    xp = context.xp
    prefix = flags.astype(np.int32)
    ranges = [number for number, point in enumerate(points) if not point]
    for number in ranges:
        axis = context.rank + number
        padding = [(0, 0)] * flags.ndim
        padding[axis] = (1, 0)
        prefix = xp.pad(xp.cumsum(prefix, axis=axis, dtype=np.int32), padding)
    total = 0
    for corner in range(2 ** len(ranges)):
        place = [index.lo for index in indices]
        sign = 1
        for bit, number in enumerate(ranges):
            if corner >> bit & 1:
                place[number] = indices[number].hi + 1
            else:
                sign = -sign
        total = total + sign * _place(context, prefix, place)
    return total


def _box(
    context: Context, entries: Any, indices: list[Interval], points: list[bool], best: Any, first: tuple[Any, ...] = ()
) -> Any:
    """`best` over the box of the indices, of which the `first` are done.

    Two windows of the largest power of two that fits cover each range (a sparse table).
    """
    if len(first) == len(indices):
        return _place(context, entries, list(first))
    index, axis = indices[len(first)], context.rank + len(first)

    def rest(place):
        return _box(context, entries, indices, points, best, (*first, place))

    result = rest(index.lo)
    if points[len(first)]:
        return result
    xp = context.xp
    span = index.hi - index.lo + 1
    span = span.reshape(span.shape + (1,) * (result.ndim - span.ndim))
    width = 2
    while width <= entries.shape[axis] + width // 2 - 1:
        if xp is np and not (span >= width).any():
            break
        half, size = width // 2, entries.shape[axis]
        near = entries[(slice(None),) * axis + (slice(0, size - half),)]
        far = entries[(slice(None),) * axis + (slice(half, size),)]
        entries = best(near, far)
        last = entries.shape[axis] - 1
        one = rest(xp.minimum(index.lo, last))
        other = rest(xp.clip(index.hi - width + 1, 0, last))
        result = xp.where(span >= width, best(one, other), result)
        width *= 2
    return result

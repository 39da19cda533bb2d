"""The rule of a lookup in sorted lists: whether any, or every, number of an interval is in the lists of a range."""

from typing import Any

import numpy as np

from ....masks.selected import entries_below
from . import bounds
from .bounds import Context, Interval

COUNTS = 2**26
"""The most entries of the table of counts, lists x key tiles, that is built."""


def row_holds(context: Context, equation: Any, table: Interval, row: Interval, number: Interval) -> Interval | None:
    """The rule of `masks.selected.row_holds`: counts the pairs (row, number) of a box that are in the table. Exact.

    For each list it counts the distinct entries within the numbers of each key tile. Sums over the lists of a query
    tile are differences of running sums.
    """
    del equation
    xp, rank = context.xp, context.rank
    *lead, rows, choices = table.lo.shape
    separable = set(lead[-2:]) == {1} and row.lo.shape[-1] == row.hi.shape[-1] == number.lo.shape[-2] == 1
    if not separable or number.hi.shape[-2] != 1 or not bounds.is_point(context, table):
        return None
    entries = table.lo.reshape(*lead[:-2], rows, choices)
    outer = np.broadcast_shapes(entries.shape[:-2], number.lo.shape[: rank - 2])
    if int(np.prod(outer)) * rows * number.lo.shape[-1] > COUNTS:
        return None
    first = xp.concatenate([xp.ones_like(entries[..., :1], bool), entries[..., 1:] != entries[..., :-1]], -1)
    distinct = xp.cumsum(first, -1, dtype=np.int32)
    distinct = xp.concatenate([xp.zeros_like(distinct[..., :1]), distinct], -1)

    def below(bound: Any) -> Any:
        """The number of distinct entries of each list below each number, `[..., rows, key tiles]`."""
        place = entries_below(xp, entries, bound)
        lists = xp.broadcast_to(distinct, (*place.shape[:-1], choices + 1))
        return xp.take_along_axis(lists, place, axis=-1)

    low = xp.maximum(number.lo, 0)
    high = xp.clip(number.hi, -1, np.iinfo(np.int32).max - 1)
    less, least = below(high + 1), below(low)
    counts = less - xp.minimum(least, less)
    running = xp.cumsum(counts, -2, dtype=np.int32)
    running = xp.concatenate([xp.zeros_like(running[..., :1, :]), running], -2)

    def up_to(place: Any) -> Any:
        """The number of pairs in the lists before `place [..., query tiles, 1]`."""
        lists = np.broadcast_shapes(running.shape[:-2], place.shape[:-2])
        whole = xp.broadcast_to(running, (*lists, *running.shape[-2:]))
        place = xp.broadcast_to(place, (*lists, place.shape[-2], running.shape[-1]))
        return xp.take_along_axis(whole, place, axis=-2)

    found = up_to(row.hi + 1) - up_to(row.lo)
    # A list cannot contain more numbers than it has entries, so clamping is exact and avoids int32 overflow.
    width = xp.minimum(high - low, choices) + 1
    every = (found == (row.hi - row.lo + 1) * width) & (number.lo >= 0)
    return Interval(every, found > 0)

"""A plan as a small text picture."""

from typing import Any

import numpy as np

from ....foundation.arguments import check_counts
from ....foundation.arrays import as_array, as_constant
from ....foundation.pieces import map_fields
from ....masks.base import Mask, paints_masks
from ....masks.placement import placed
from .intervals import is_known
from .plan import EMPTY, FULL, PARTIAL, Plan, make_plan

COLUMNS = 48
_CELLS = {EMPTY: "·", PARTIAL: "▒", FULL: "█"}


def picture(plan: Plan) -> str:
    """At most 48 x 48 cells (`█` all pairs attend, `▒` some, `·` none), followed by the number of tiles.

    If the plan has several batch elements or heads, the first is drawn.
    """
    if not plan.known:
        return "tiles: decided at run time, from arrays that are not known while tracing"
    states = plan.states.reshape(-1, *plan.states.shape[-2:])
    if states.size == 0:
        return "no tiles"
    grid = states[0]
    for axis in (0, 1):
        starts = np.arange(0, grid.shape[axis], -(-grid.shape[axis] // COLUMNS))
        low, high = (function.reduceat(grid, starts, axis=axis) for function in (np.minimum, np.maximum))
        grid = np.where(low == high, low, np.uint8(PARTIAL))
    lines = ["".join(_CELLS[int(cell)] for cell in row) for row in grid]
    visited, full, total = plan.counts()
    lines.append(f"visited {visited} of {total} tiles ({visited / total:.1%}), {full} of them full")
    if len(states) > 1:
        heads = plan.states.shape[-3]
        several = [
            f"{size} {name}" for size, name in ((len(states) // heads, "sequences"), (heads, "heads")) if size > 1
        ]
        lines.append(f"drawn: the first of {', '.join(several)}; counted: all")
    return "\n".join(lines)


def size_of_tiles(plan: Plan) -> str:
    """The size of a tile, in words."""
    queries, keys = "query" if plan.q_tile == 1 else "queries", "key" if plan.k_tile == 1 else "keys"
    return f"tiles of {plan.q_tile} {queries} x {plan.k_tile} {keys}"


@paints_masks
def picture_of_mask(mask: Mask, q_len: int, kv_len: int, query_positions: Any = None) -> str:
    """See `Mask.picture`."""

    def look(value, axes, name):
        del axes
        value = as_constant(value)
        if not is_known(value):
            raise ValueError(f"`{name}` is not known while tracing: a picture needs the mask's values, outside `jit`.")
        return value

    check_counts(q_len=q_len, kv_len=kv_len)
    query_positions = as_constant(as_array(query_positions))
    aligned, query_positions, key_positions = placed(
        map_fields(mask, look), q_len, kv_len, query_positions, None if query_positions is None else np.arange(kv_len)
    )
    tile = 1
    while tile * COLUMNS < max(q_len, kv_len):
        tile *= 2
    if 0 in (q_len, kv_len):
        return "no tiles"
    plan = make_plan(aligned, query_positions, key_positions, tile, tile)
    return f"{picture(plan)}\n{size_of_tiles(plan)}"

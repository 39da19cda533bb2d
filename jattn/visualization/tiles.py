"""The tiles that attention visits, of an explanation or a plan."""

from typing import Any

import numpy as np

from ..foundation.arrays import describe
from ..ops.attention.plan import Plan

Tiles = tuple[int, int, np.ndarray, tuple[int, int]]


def plan_of(plan: Any) -> Plan:
    """The plan that an explanation has, or the plan itself.

    Raises:
        ValueError: it is neither; its tiles are only known at run time.
    """
    found = plan if isinstance(plan, Plan) else getattr(plan, "plan", None)
    if not isinstance(found, Plan):
        raise ValueError(f"`plan` must be what `jattn.explain` returns for a call of attention; got {describe(plan)}.")
    if not isinstance(found.states, np.ndarray):
        raise ValueError("`plan` must be known; this one is decided at run time, from arrays that were traced.")
    return found


def tiles(plan: Any) -> Tiles | None:
    """The size of a tile in queries and keys, the state of each, and the numbers of queries and keys.

    States are 0 for skipped, 1 for masked in part, 2 for full.

    Args:
        plan: what `jattn.explain` returns, or its plan, or None.

    Raises:
        ValueError: as `plan_of`.
    """
    if plan is None:
        return None
    found = plan_of(plan)
    return found.q_tile, found.k_tile, found.states, (found.q_len, found.kv_len)


def fits(found: Tiles, shape: tuple[int, ...]) -> bool:
    """Whether tiles are those of a map of this shape `(queries, keys)`."""
    return found[3] == tuple(shape)

"""The tiles that attention visits, of an explanation or a plan."""

from typing import Any

import numpy as np

from ..foundation.arrays import describe
from ..ops.attention.plan import Plan


def tiles(plan: Any) -> tuple[int, int, np.ndarray] | None:
    """The size of a tile in queries and keys, and the state of each: 0 skipped, 1 masked in part, 2 full.

    Args:
        plan: what `jattn.explain` returns, or its plan, or None.

    Raises:
        ValueError: it is neither, or decided at run time.
    """
    if plan is None:
        return None
    found = plan if isinstance(plan, Plan) else getattr(plan, "plan", None)
    if not isinstance(found, Plan):
        raise ValueError(f"`plan` must be what `jattn.explain` returns for a call of attention; got {describe(plan)}.")
    if not isinstance(found.states, np.ndarray):
        raise ValueError("`plan` must be known; this one is decided at run time, from arrays that were traced.")
    return found.q_tile, found.k_tile, found.states

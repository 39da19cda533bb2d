"""The compiler's estimate of what a call costs, from a table of what a tile costs.

The TPU compiler simulates the schedule of a kernel, with its waits and copies (`jattn.benchmarks.tpu`). Of n² tiles the
cycles grow like a n² + b n + c. The table has a, of full and of partial tiles, and b; so a call costs

    cycles = heads (full tiles x full + partial tiles x partial + tiles of queries x row)

It is an estimate by a compiler that ran nothing, not a time.
"""

import dataclasses
import math
from typing import NamedTuple

from .....foundation.target import Target
from ...call import Call
from ...plan import Plan

TILE, DIM = 512, 128
"""Queries and keys of the tiles in the table, and features of a query and of a value."""


class Cost(NamedTuple):
    """Cycles of a pass in bfloat16, for one head: of a full tile, a partial (causal) one, and a tile of queries."""

    full: float
    partial: float
    row: float


COSTS: dict[str, tuple[Cost, Cost]] = {
    "v5e": (Cost(1148, 1152, 727), Cost(2656, 2659, 1139)),
    "v6e": (Cost(507, 588, 483), Cost(1246, 1379, 710)),
    "7x": (Cost(512, 568, 466), Cost(1246, 1335, 584)),
}
"""Of each generation, the forward and the backward pass: `python -m jattn.benchmarks --suite tpu`, JAX 0.12."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The compiler's estimate of a call, in cycles of one core.

    Attributes:
        forward: of the forward pass.
        backward: of the backward pass.
        exact: whether the table has what the call computes; scores and dropout cost more.
    """

    forward: float
    backward: float
    exact: bool

    def __str__(self) -> str:
        least = "" if self.exact else "at least "
        return (
            f"the compiler's estimate for one core: {least}{self.forward:,.0f} cycles forward, "
            f"{self.backward:,.0f} backward"
        )


def estimate(call: Call, plan: Plan, target: Target) -> Estimate | None:
    """The estimate of a call; None if its tiles are decided at run time, or the table has nothing like it.

    Args:
        call: prepared.
        plan: the tiles that it visits.
        target: what the program is compiled for.
    """
    costs = COSTS.get(target.generation or "") if target.platform == "tpu" else None
    if not call.pieces.similarity.is_dot:
        return None
    if costs is None or not plan.known or max(call.qk_dim, call.v_dim) > DIM or set(call.dtypes) != {"bfloat16"}:
        return None
    visited, full, _ = plan.counts()
    *outer, q_tiles, _ = plan.states.shape
    heads = math.prod(call.batch) * call.q_heads / math.prod(outer)  # of each plan
    queries = plan.q_tile / TILE
    tiles = queries * plan.k_tile / TILE

    def cycles(cost: Cost) -> float:
        rows = math.prod(outer) * q_tiles * queries * cost.row
        return heads * (tiles * (full * cost.full + (visited - full) * cost.partial) + rows)

    pieces = call.pieces
    return Estimate(*map(cycles, costs), exact=not pieces.scores and pieces.dropout is None)

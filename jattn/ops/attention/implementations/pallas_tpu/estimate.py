"""The compiler's estimate of what a call costs, from a table of what a tile costs.

The TPU compiler simulates the schedule of a kernel, with its waits and copies (`jattn.benchmarks.tpu`). Of n² tiles the
cycles grow like a n² + b n + c. The table has a, of full and of partial tiles, and b; so a call costs

    cycles = heads (full tiles x full + partial tiles x partial + tiles of queries x row)

In decoding, computing a tile and copying the next one happen at once, and the slower of the two bounds the step:

    cycles = tiles x max(compute, bytes of a tile / bandwidth)

It is an estimate by a compiler that ran nothing, not a time.
"""

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp

from .....foundation.target import Target
from ...call import Call
from ...plan import Plan
from .geometry import SUBLANES, rounded
from .storage import FEATURES, HEADS, TOKENS, order_of

TILE = 512
"""Queries and keys of the tiles in the table."""


class Chip(NamedTuple):
    """A device: cycles per second of a core, and the bytes per second that its memory is published to deliver."""

    clock: float
    bandwidth: float

    @property
    def bytes(self) -> float:
        """Per cycle."""
        return self.bandwidth / self.clock


CHIPS = {
    "v4": Chip(1.05e9, 1228e9),
    "v5e": Chip(1.5e9, 819e9),
    "v5p": Chip(1.75e9, 2765e9),
    "v6e": Chip(1.75e9, 1640e9),
    "7x": Chip(2.2e9, 3690e9),  # half of a chip, whose two cores are two devices
}
"""Of each generation. The clock follows from the published peak in bfloat16: cores x matrix units x the multiplications
of a unit per cycle x 2 x clock."""


NONE = "no estimate of cycles"


class Cost(NamedTuple):
    """Cycles of a pass for one head: of a full tile, a partial (causal) one, and a tile of queries."""

    full: float
    partial: float
    row: float


COSTS: dict[tuple[str, str, int], tuple[Cost, Cost]] = {
    ("v5e", "bfloat16", 128): (Cost(1148, 1150, 453), Cost(2645, 2646, 1089)),
    ("v5e", "bfloat16", 256): (Cost(2165, 2167, 756), Cost(5292, 5293, 2959)),
    ("v5e", "float32", 128): (Cost(7014, 7016, 1725), Cost(16018, 16019, 3724)),
    ("v5p", "bfloat16", 128): (Cost(573, 573, 313), Cost(1344, 1344, 928)),
    ("v6e", "bfloat16", 128): (Cost(507, 588, 344), Cost(1176, 1277, 666)),
    ("v6e", "bfloat16", 256): (Cost(634, 715, 562), Cost(1400, 1501, 1139)),
    ("v6e", "float32", 128): (Cost(3276, 3358, 1192), Cost(7814, 7915, 2333)),
    ("7x", "bfloat16", 128): (Cost(512, 568, 305), Cost(1225, 1232, 294)),
    ("7x", "bfloat16", 256): (Cost(637, 693, 470), Cost(1466, 1473, 484)),
    ("7x", "float32", 128): (Cost(3916, 3972, 1053), Cost(7578, 7585, 2328)),
}
"""Of each generation, dtype and number of features of queries and values, the forward and the backward pass:
`python -m jattn.benchmarks --suite tpu`, JAX 0.12. Partial tiles were measured with 128 features in bfloat16; elsewhere
they are taken to cost as much more than full ones as there. The two cores of a v5p are one device."""

DOUBLED = {"v6e": Cost(472, 551, 266), "7x": Cost(473, 533, 225)}
"""The forward pass in bfloat16 with 128 features where a step has twice the heads (see `doubled`)."""

DECODING: dict[tuple[str, str, str, int, int], float] = {
    ("v5e", "bfloat16", TOKENS, 128, 8): 977 / 4096,
    ("v5e", "bfloat16", HEADS, 128, 8): 870 / 2048,
    ("v5e", "bfloat16", FEATURES, 64, 8): 823 / 8192,
    ("v5e", "bfloat16", FEATURES, 576, 128): 3256 / 1024,
    ("v5e", "float32", TOKENS, 128, 8): 2521 / 2048,
    ("v6e", "bfloat16", TOKENS, 128, 8): 1293 / 4096,
    ("v6e", "bfloat16", HEADS, 128, 8): 1066 / 2048,
    ("v6e", "bfloat16", FEATURES, 64, 8): 1406 / 8192,
    ("v6e", "bfloat16", FEATURES, 576, 128): 1815 / 1024,
    ("v6e", "float32", TOKENS, 128, 8): 2707 / 2048,
    ("7x", "bfloat16", TOKENS, 128, 8): 1317 / 4096,
    ("7x", "bfloat16", HEADS, 128, 8): 1103 / 2048,
    ("7x", "bfloat16", FEATURES, 64, 8): 770 / 8192,
    ("7x", "bfloat16", FEATURES, 576, 128): 1134 / 1024,
    ("7x", "float32", TOKENS, 128, 8): 2850 / 2048,
}
"""Of each generation, dtype, order of keys in memory, number of features, and rows of a key head (queries times their
query heads, rounded up to 8), the cycles in which a step computes a key of one head. Where the compiler's simulation
fails, bundles stand for cycles, which are more: on v5e with 128 features, tokens first, and 64 in bfloat16; on 7x
with 64 and 576."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The compiler's estimate of a call, in cycles of one device.

    Attributes:
        forward: of the forward pass.
        backward: of the backward pass.
        relation: whether the call costs this, "at least" or "at most" this, or "about" this, if the table has something
            like it.
    """

    forward: float
    backward: float
    relation: str = ""

    def __str__(self) -> str:
        said = f"{self.relation} " if self.relation else ""
        return (
            f"the compiler's estimate for one device: {said}{self.forward:,.0f} cycles forward, "
            f"{self.backward:,.0f} backward"
        )


def estimate(call: Call, plan: Plan, target: Target, *, doubled: bool = False) -> Estimate | str:
    """The estimate of a call, or, if its tiles are decided at run time or the table has nothing like it, why not.

    Args:
        call: prepared.
        plan: the tiles that it visits.
        target: what the program is compiled for.
        doubled: whether the forward pass has twice the heads per step.
    """
    if not plan.known:
        return f"{NONE}: the tiles to visit are decided at run time"
    if not call.pieces.similarity.is_dot:
        return f"{NONE}: the similarity is no dot product"
    if len(set(call.dtypes)) > 1:
        return f"{NONE}: query, key and value differ in dtype"
    found = [
        (dim, costs)
        for (generation, dtype, dim), costs in COSTS.items()
        if (generation, dtype) == (target.generation, call.dtypes[0]) and max(call.qk_dim, call.v_dim) <= dim
    ]
    if not found:
        dim = max(call.qk_dim, call.v_dim)
        return f"{NONE}: no kernel of {call.dtypes[0]} with {dim} features was measured for {target}"
    dim, costs = min(found)
    if doubled:
        costs = DOUBLED[target.generation or ""], costs[1]
    visited, full, _ = plan.counts()
    *outer, q_tiles, _ = plan.states.shape
    heads = math.prod(call.batch) * call.q_heads / math.prod(outer)  # of each plan
    queries = plan.q_tile / TILE
    tiles = queries * plan.k_tile / TILE

    def cycles(cost: Cost) -> float:
        rows = math.prod(outer) * q_tiles * queries * cost.row
        return heads * (tiles * (full * cost.full + (visited - full) * cost.partial) + rows)

    more = bool(call.pieces.scores) or call.pieces.dropout is not None
    less = min(call.qk_dim, call.v_dim) < dim
    relation = {(True, False): "at least", (False, True): "at most", (True, True): "about"}.get((more, less), "")
    forward, backward = map(cycles, costs)
    return Estimate(forward, backward, relation)


@dataclasses.dataclass(frozen=True)
class StepEstimate:
    """The estimate of a step of decoding, in cycles of one device.

    Attributes:
        tile: the keys of a tile.
        copies: the cycles in which memory delivers the keys and values of a tile.
        compute: those in which a tile is computed; None if the table has nothing like it.
        tiles: the tiles that all sequences visit; those of the whole cache, if that is decided at run time.
        known: whether the number of tiles is known.
        bandwidth: of the memory, in bytes per second.
    """

    tile: int
    copies: float
    compute: float | None
    tiles: int
    known: bool
    bandwidth: float

    @property
    def each(self) -> float:
        """Cycles of a tile."""
        return max(self.copies, self.compute or 0)

    @property
    def cycles(self) -> float:
        """Of all tiles; the first is copied before anything is computed."""
        return self.tiles * self.each + min(self.copies, self.compute or 0)

    def __str__(self) -> str:
        bound = f"copies at {self.bandwidth / 1e9:,.0f} GB/s"
        if self.compute is None:
            bound = f"at least, for {bound}"
        elif self.compute > self.copies:
            bound = f"bound by computing; {bound} take {self.copies:,.0f}"
        else:
            bound = f"bound by {bound}; computing takes {self.compute:,.0f}"
        tiles = f"{self.tiles:,} tiles" if self.known else f"{self.tiles:,} tiles, of which lengths may leave some out"
        return (
            f"the compiler's estimate for one device: {self.each:,.0f} cycles for a tile of {self.tile:,} keys "
            f"({bound}); {self.cycles:,.0f} for {tiles}"
        )


def estimate_step(call: Call, plan: Plan, parts: int, target: Target) -> StepEstimate | None:
    """The estimate of a step of decoding; None if the generation is unknown.

    Args:
        call: prepared.
        plan: the tiles of each sequence.
        parts: the cores that the tiles are dealt out to.
        target: what the program is compiled for.
    """
    chip = CHIPS.get(target.generation or "") if target.platform == "tpu" else None
    if chip is None:
        return None
    key, value = (jnp.dtype(dtype).itemsize for dtype in call.dtypes[1:])
    numbers = call.qk_dim * key + (0 if call.keys_as_values else call.v_dim * value)
    copies = plan.k_tile * call.kv_heads * numbers / chip.bytes
    rows = rounded(call.q_heads // call.kv_heads * call.q_len, SUBLANES)
    alike = call.qk_dim == call.v_dim and len(set(call.dtypes)) == 1
    what = target.generation or "", call.dtypes[1], order_of(call.kv_heads, call.qk_dim), call.qk_dim, rows
    compute = DECODING.get(what) if alike else None
    batch, tiles = math.prod(call.batch), -(-call.kv_len // plan.k_tile)
    if plan.known:
        joined = plan.coarse((), call.q_heads)  # a tile is visited for all heads or for none
        tiles = joined.counts()[0] / math.prod(joined.states.shape[:-2])
    compute = None if compute is None else compute * plan.k_tile * call.kv_heads / parts
    return StepEstimate(plan.k_tile, copies, compute, round(batch * tiles), plan.known, chip.bandwidth)

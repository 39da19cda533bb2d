"""The tiled implementation: its contract with `attention`."""

import dataclasses
import math

import jax
import numpy as np

from ...call import Call
from ...partial import Partial
from ...plan import Plan
from ...streaming import Gradients, Streaming
from ...tile import is_float
from . import backward, forward, tiling
from .tiling import Schedule, Tiling


@dataclasses.dataclass(frozen=True)
class Tiled(Streaming):
    """Attention one tile at a time: an online softmax forward, recomputed weights backward. Plain XLA, any device.

    Tiles that the plan finds empty are skipped, and full ones are not masked. Memory beside the inputs, the output and
    the gradients is a few tiles. First derivatives in reverse mode only.

    Sources: online softmax, Milakov & Gimelshein 2018 (arXiv:1805.02867) and Rabe & Staats 2021 (arXiv:2112.05682);
    recomputation in the backward pass, FlashAttention (Dao et al. 2022, arXiv:2205.14135).

    Args:
        q_tile: queries per tile; by default chosen for the target.
        k_tile: keys per tile; likewise. Tile sizes never change results beyond rounding.

    Raises:
        ValueError: a tile size is below 1.
    """

    q_tile: int | None = None
    k_tile: int | None = None
    name = "tiled"

    def __post_init__(self):
        for field in ("q_tile", "k_tile"):
            size = getattr(self, field)
            if size is not None and (not isinstance(size, int) or size < 1):
                raise ValueError(f"`{field}` must be a positive int, or None to have it chosen; got {size!r}.")

    def plan(self, call: Call) -> Schedule | None:
        pieces = call.pieces
        deciding = jax.tree.leaves((pieces.mask, pieces.query_positions, pieces.key_positions))
        if pieces.mask is not None and not all(isinstance(leaf, np.ndarray) for leaf in deciding):
            return None
        return self._schedule(call)

    def _schedule(self, call: Call) -> Schedule:
        """The schedule that the call carries, for its batch; otherwise one made from its arrays."""
        if call.plan is not None:
            return call.plan.on(call.batch)
        return tiling.schedule(call, self.q_tile, self.k_tile)

    def stream(self, call: Call, query: jax.Array, key: jax.Array, value: jax.Array) -> Partial:
        schedule = self._schedule(call).wider()
        fold, lists = schedule.tiling.fold, schedule.lists()
        pieces = jax.tree.map(fold.aligned, call.pieces)
        query, key, value = map(fold.rows, (query, key, value))
        results = forward.attend(query, key, value, pieces, lists, schedule.tiling, call.scale)
        out, lse, remainder = map(fold.unfolded_rows, results)
        return Partial(out, lse, remainder)

    def gradients(  # type: ignore[override]
        self,
        call: Call,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        results: Partial,
        cotangents: Partial,
    ) -> Gradients:
        schedule = self._schedule(call)
        fold, lists = schedule.tiling.fold, schedule.lists()
        pieces = jax.tree.map(lambda leaf: (fold.apart if is_float(leaf) else fold.aligned)(leaf), call.pieces)
        arrays = query, key, value, results.out, results.lse, results.remainder, cotangents.out, cotangents.lse
        query, key, value, *saved = map(fold.rows, arrays)
        *grads, d_floats = backward.gradients(query, key, value, pieces, lists, schedule.tiling, call.scale, *saved)
        leaves, tree = jax.tree.flatten(call.pieces)
        rest = iter(d_floats)
        d_pieces = tree.unflatten([fold.together(next(rest), leaf) if is_float(leaf) else None for leaf in leaves])
        d_query, d_key, d_value = map(fold.unfolded_rows, grads)
        return Gradients(d_query, d_key, d_value, d_pieces)

    def describe(self, call: Call) -> tuple[Plan | None, str]:
        if 0 in (call.q_len, call.kv_len):
            return None, "nothing"
        schedule = self._schedule(call)
        cut, plan = schedule.tiling, schedule.plan
        examples = math.prod(size for size, whole in zip(cut.batch, cut.whole, strict=True) if whole)
        tile = 4 * examples * cut.q_heads * cut.q_tile * cut.k_tile / 2**20
        wide = cut.wider(plan.states)
        block = 4 * examples * cut.kv_heads * call.kv_len * (call.qk_dim + call.v_dim) / 2**20
        memory = (
            f"forward: about two tiles of scores ({_heads(wide.q_heads)} x {cut.q_tile} x {cut.k_tile}), "
            f"{2 * tile * wide.q_heads / cut.q_heads:,.1f} MiB; backward: about four of {_heads(cut.q_heads)}, and the "
            f"key and value gradients of {_heads(cut.kv_heads)}, {4 * tile + block:,.1f} MiB"
        )
        return _as_visited(plan, cut), memory


def _as_visited(plan: Plan, cut: Tiling) -> Plan:
    """The plan as it is visited: each head visits the tiles of all heads that are computed with it."""
    folded = cut.fold.aligned(plan.states)
    joined = dataclasses.replace(plan, states=folded).coarse(cut.whole, cut.q_heads)
    xp = np if joined.known else jax.numpy
    states = joined.states if folded.shape[-3] == 1 else xp.repeat(joined.states, cut.q_heads, axis=-3)
    if not cut.fold.trivial:
        states = xp.broadcast_to(states, folded.shape).reshape(plan.states.shape)
    return dataclasses.replace(joined, states=states)


def _heads(count: int) -> str:
    return "1 head" if count == 1 else f"{count} heads"

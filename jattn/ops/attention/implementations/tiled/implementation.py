"""The tiled implementation: its methods for `attention`, and the forward pass, an online softmax over key tiles."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from .....foundation.arrays import quotient
from .....foundation.numerics import accumulation_dtype, where
from .....foundation.sharding import full, varying_axes
from .....similarities.dot import folded_scale
from ...call import Call, Pieces
from ...partial import Partial, log_of_sum
from ...plan import Lists, Plan
from ...streaming import Gradients, Streaming
from ...tile import add_values, dropout_factor, grouped_product, is_float, scores_of
from . import backward, tiling
from .slicing import (
    fresh_rows,
    in_branches,
    is_cheap,
    is_short,
    key_tile_at,
    loop,
    own_pairs,
    pairs_of,
    put_rows,
    row_of,
    rows_of,
    slice_pieces,
    sweep,
)
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
        results = forward(query, key, value, pieces, lists, schedule.tiling, call.scale)
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


def forward(
    query: jax.Array, key: jax.Array, value: jax.Array, pieces: Pieces, lists: Lists, tiling: Tiling, scale: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The streamed output `[batch..., q_len, q_heads, v_dim]`, its lse `[batch..., q_len, q_heads]`, and the remainder.

    For each query tile the loop carries, per row, the maximum score m, the mass l and the weighted sum a, starting from
    m = -inf, l = 0, a = 0. A key tile with scores s' and values v' updates them:

        m' = max(m, max_j s'_j),    c = exp(m - m')
        l' = c l + Σ_j exp(s'_j - m'),    a' = c a + Σ_j exp(s'_j - m') v'_j

    After the last tile, out = a / l and lse = m + log l. Elementwise normalizers carry a plain sum and a count of keys.

    Args:
        query: folded, `[batch..., q_len, q_heads, qk_dim]`; so are key and value.
        key: see `query`.
        value: see `query`.
        pieces: aligned and folded.
        lists: the tiles to visit.
        tiling: the sizes of the loop.
        scale: the factor on the similarity.
    """
    dtype = accumulation_dtype(query, key, value)
    axes = varying_axes(query, key, value, pieces, lists)
    softmax = pieces.normalizer.streams_as == "softmax"
    masked = pieces.mask is not None or any(tiling.ragged)
    # Keep the accumulation dtype: `Normalizer.rescale` would otherwise round a second time, and the backward pass
    # subtracts the product of `out` and its cotangent from the gradient of every score.
    out = full((*query.shape[:-1], value.shape[-1]), 0, dtype, axes)
    lse_and_remainder = full((*query.shape[:-1], 2), 0, dtype, axes)

    def one_query_tile(step, carry):
        block, q_index = quotient(step, tiling.q_tiles)
        row_starts = tiling.starts(block, q_index)
        query_tile, left = folded_scale(pieces.similarity, rows_of(query, tiling, row_starts, keys=False), scale)
        rows = query_tile.shape[:-1]
        state = (
            full(rows, -jnp.inf, dtype, axes),  # maximum score
            full(rows, 0, dtype, axes),  # mass
            full((*rows, value.shape[-1]), 0, dtype, axes),  # weighted values
        )

        def visit(place, state, partial):
            top, mass, summed = state
            k_index = key_tile_at(lists, place)
            starts = tiling.at_keys(row_starts, k_index)
            tile = slice_pieces(pieces, tiling, starts)

            def scores():
                return scores_of(tile, tile.similarity.pair(query_tile, rows_of(key, tiling, starts, keys=True)), left)

            def values():
                # Weights are rounded to the dtype of the values for their product. A CPU gains nothing from that, and
                # its backward pass, which does not round, needs rows of score gradients that sum to 0.
                value_tile = rows_of(value, tiling, starts, keys=True)
                return value_tile if tiling.rounds else value_tile.astype(dtype)

            def pairs():
                return pairs_of(slice_pieces(pieces, tiling, starts), tiling, q_index, k_index)

            def masked_scores():
                return where(pairs(), scores(), -jnp.inf)

            if softmax:
                if not masked:
                    row = scores()
                elif is_short(lists) and is_cheap(lambda: pairs_of(tile, tiling, q_index, k_index)):
                    row = masked_scores()
                else:  # Branches around the product too: selecting scores in full tiles would cost more than a branch.
                    row = in_branches(partial, masked_scores, scores, axes)
                new_top = jnp.maximum(top, row.max(-1))
                safe_top = where(jnp.isneginf(new_top), 0, new_top)
                weights = jnp.exp(row - safe_top[..., None])
                shrink = jnp.exp(top - safe_top)
                top, mass = new_top, mass * shrink + weights.sum(-1)

                def kept():
                    return summed * shrink[..., None]
            else:
                weights = tile.normalizer.activation(scores())
                count = tiling.k_tile
                allowed = own_pairs(pieces, tiling, starts, q_index, k_index, partial)
                if allowed is not None:
                    count = jnp.broadcast_to(allowed, weights.shape).sum(-1).astype(dtype)
                    weights = where(allowed, weights, 0)
                mass = mass + count

                def kept():
                    return summed

            factor = dropout_factor(tile)
            if factor is not None:
                weights = weights * factor
            if masked:
                return top, mass, add_values(kept, weights, values, pairs, axes)
            value_tile = values()
            return top, mass, kept() + grouped_product(weights.astype(value_tile.dtype), value_tile)

        top, mass, summed = sweep(visit, row_of(lists, row_starts, tiling, q_index), state, apart=False)
        if softmax:
            summed = summed / where(mass == 0, 1, mass)[..., None]
        lse = log_of_sum(top, mass) if softmax else (jnp.log(mass), jnp.zeros_like(mass))
        rows = summed, jnp.stack(lse, -1)
        fresh = fresh_rows(tiling, q_index)
        return tuple(put_rows(whole, tile, tiling, row_starts, fresh) for whole, tile in zip(carry, rows, strict=True))

    carry = (out, lse_and_remainder)
    out, lse_and_remainder = loop(tiling.blocks * tiling.q_tiles, one_query_tile, carry)
    return out, lse_and_remainder[..., 0], lse_and_remainder[..., 1]


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

"""The forward pass: for each query tile, an online softmax over the key tiles of the plan."""

import jax
import jax.numpy as jnp

from .....foundation.arrays import quotient
from .....foundation.numerics import accumulation_dtype, where
from .....foundation.sharding import full, varying_axes
from .....similarities.dot import folded_scale
from ...call import Pieces
from ...partial import log_of_sum
from ...plan import Lists
from ...tile import add_values, dropout_factor, grouped_product, scores_of
from .slicing import (
    fresh_rows,
    in_branches,
    is_cheap,
    key_tile_at,
    loop,
    mostly_partial,
    own_pairs,
    pairs_of,
    put_rows,
    row_of,
    rows_of,
    slice_pieces,
    sweep,
)
from .tiling import Tiling


def attend(
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
                elif mostly_partial(lists) and is_cheap(lambda: pairs_of(tile, tiling, q_index, k_index)):
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

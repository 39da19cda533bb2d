"""The forward pass: for each query tile, an online softmax over the key tiles of the plan."""

import jax
import jax.numpy as jnp

from .....foundation.numerics import accumulation_dtype
from .....foundation.slices import quotient
from .....foundation.varying import full, varying_axes
from .....similarities.base import folded_scale
from ...call import Pieces
from ...partial import log_of_sum
from ...plan import Lists
from ...tile import dropout_factor, grouped_product, multiply_values, scores_of
from .slicing import fresh_rows, key_tile_at, own_pairs, put_rows, row_of, rows_of, slice_pieces, sweep
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
    # Keep the accumulation dtype: `Normalizer.rescale` would otherwise round a second time, and the backward pass
    # subtracts the product of `out` and its cotangent from the gradient of every score.
    out = full((*query.shape[:-1], value.shape[-1]), 0, dtype, axes)
    tops_and_masses = full((*query.shape[:-1], 2), 0, dtype, axes)

    def one_query_tile(step, carry):
        block, q_index = quotient(step, tiling.q_tiles)
        starts = tiling.starts(block, q_index, 0)
        query_tile, left = folded_scale(pieces.similarity, rows_of(query, tiling, starts, keys=False), scale)
        rows = query_tile.shape[:-1]
        state = (
            full(rows, -jnp.inf, dtype, axes),  # maximum score
            full(rows, 0, dtype, axes),  # mass
            full((*rows, value.shape[-1]), 0, dtype, axes),  # weighted values
        )

        def visit(place, state, partial):
            k_index = key_tile_at(lists, place)
            starts = tiling.starts(block, q_index, k_index)
            tile = slice_pieces(pieces, tiling, starts)
            key_tile = rows_of(key, tiling, starts, keys=True)
            value_tile = rows_of(value, tiling, starts, keys=True)
            if not tiling.rounds:
                # Weights are rounded to the dtype of the values for their product. A CPU gains nothing from that, and
                # its backward pass, which does not round, needs rows of score gradients that sum to 0.
                value_tile = value_tile.astype(dtype)
            raw = tile.similarity.pair(query_tile, key_tile)
            scores = scores_of(tile, raw, left)
            allowed = own_pairs(tile, tiling, q_index, k_index, partial)
            update = _softmax if softmax else _elementwise
            return update(state, scores, allowed, dropout_factor(tile), value_tile, tile.normalizer)

        top, mass, summed = sweep(visit, row_of(lists, starts, tiling, q_index), state, apart=False)
        if softmax:
            summed = summed / jnp.where(mass == 0, 1, mass)[..., None]
        rows = summed, jnp.stack([top, mass], -1)
        fresh = fresh_rows(tiling, q_index)
        return tuple(put_rows(whole, tile, tiling, starts, fresh) for whole, tile in zip(carry, rows, strict=True))

    carry = (out, tops_and_masses)
    out, tops_and_masses = jax.lax.fori_loop(0, tiling.blocks * tiling.q_tiles, one_query_tile, carry)
    top, mass = tops_and_masses[..., 0], tops_and_masses[..., 1]
    return out, *(log_of_sum(top, mass) if softmax else (jnp.log(mass), jnp.zeros_like(mass)))


def _product(weights: jax.Array, allowed: jax.Array | None, value_tile: jax.Array) -> jax.Array:
    if allowed is None:
        return grouped_product(weights.astype(value_tile.dtype), value_tile)
    return multiply_values(weights, value_tile, allowed)


def _softmax(state, scores, allowed, factor, value_tile, normalizer):
    del normalizer
    top, mass, summed = state
    if allowed is not None:
        scores = jnp.where(allowed, scores, -jnp.inf)
    new_top = jnp.maximum(top, scores.max(-1))
    safe_top = jnp.where(jnp.isneginf(new_top), 0, new_top)
    weights = jnp.exp(scores - safe_top[..., None])
    shrink = jnp.exp(top - safe_top)
    mass = mass * shrink + weights.sum(-1)
    if factor is not None:
        weights = weights * factor
    return new_top, mass, summed * shrink[..., None] + _product(weights, allowed, value_tile)


def _elementwise(state, scores, allowed, factor, value_tile, normalizer):
    top, count, summed = state
    weights = normalizer.activation(scores)
    if allowed is None:
        count = count + scores.shape[-1]
    else:
        weights = jnp.where(allowed, weights, 0)
        count = count + jnp.broadcast_to(allowed, scores.shape).sum(-1).astype(count.dtype)
    if factor is not None:
        weights = weights * factor
    return top, count, summed + _product(weights, allowed, value_tile)

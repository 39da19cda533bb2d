"""The backward pass: one sweep over the tiles of the plan that recomputes the weights and accumulates all gradients."""

from typing import Any

import jax
import jax.numpy as jnp

from .....foundation.arrays import put_at, slice_at
from .....foundation.numerics import accumulation_dtype, inner, where, without_nonfinite
from .....foundation.sharding import full, varying_axes
from .....similarities.dot import folded_scale
from ...call import Pieces
from ...plan import Lists
from ...tile import dropout_factor, floats_of, grouped_product, pairwise_vjp, scores_vjp, weights_vjp
from .slicing import fresh_rows, key_tile_at, loop, own_pairs, put_rows, row_of, rows_of, slice_pieces, sweep
from .tiling import Tiling


def gradients(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    pieces: Pieces,
    lists: Lists,
    tiling: Tiling,
    scale: float,
    out: jax.Array,
    lse: jax.Array,
    remainder: jax.Array,
    out_cotangent: jax.Array,
    lse_cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, list[jax.Array]]:
    """Gradients of query, key, value and of every floating-point array of the pieces.

    With p_ij = exp(s_ij - lse_i) recomputed for a tile, the cotangents dout and dlse, and the dropout factor d_ij, for
    a softmax normalizer:

        dp_ij    = d_ij dout_i · value_j
        ds_ij    = p_ij (dp_ij + shift_i),    shift_i = dlse_i - dout_i · out_i
        dvalue_j = Σ_i p_ij d_ij dout_i

    ds goes back through the scores of the tile (`jax.vjp`), which gives the gradients of arrays in pieces, and through
    the similarity, for a dot product:

        dquery_i = Σ_j ds_ij key_j,    dkey_j = Σ_i ds_ij query_i

    Key and value gradients of a block are kept while its query tiles are visited; the query gradient is complete after
    each query tile.

    Args:
        query: folded, `[batch..., q_len, q_heads, qk_dim]`; so are all arrays below, each in the layout of its own.
        key: `[batch..., kv_len, kv_heads, qk_dim]`.
        value: `[batch..., kv_len, kv_heads, v_dim]`.
        pieces: aligned; floating-point arrays with one copy per major part (`Fold.apart`).
        lists: the tiles to visit.
        tiling: the sizes of the loop.
        scale: the factor on the similarity.
        out: the streamed output, over all keys.
        lse: its log-sum-exp.
        remainder: the rounding error of `lse`.
        out_cotangent: dout.
        lse_cotangent: dlse.

    Returns:
        The gradients of query, key and value in their dtypes, and a list of those of the floating-point leaves of
        `pieces`.
    """
    dtype = accumulation_dtype(query, key, value)
    axes = varying_axes(query, key, value, pieces, lists, out_cotangent, lse_cotangent)
    softmax = pieces.normalizer.streams_as == "softmax"
    # Replacing masked pairs is expensive, so full tiles get their own loop if it is necessary.
    apart = not all(one.finite_at_zero for one in (*pieces.scores, pieces.normalizer))
    apart |= not (pieces.similarity.is_dot or pieces.similarity.finite)
    rank, group = tiling.rank, tiling.group
    block_batch = [size if whole else 1 for size, whole in zip(tiling.batch, tiling.whole, strict=True)]

    def zeros(shape, dtype):
        return full(shape, 0, dtype, axes)

    def operand(weights, dtype):
        """Round weights, or gradients of scores, for a matrix product with an array of this dtype."""
        return weights.astype(dtype) if tiling.rounds else weights

    def one_block(block, carry):
        d_query, d_key, d_value, d_floats = carry
        # Transposed, [heads, dim, length]: on a CPU, contracting the query axis of [q, k] with rows that are contiguous
        # along it is about three times faster than producing [length, dim].
        d_key_block = zeros((*block_batch, tiling.kv_heads, key.shape[-1], tiling.kv_len), dtype)
        d_value_block = zeros((*block_batch, tiling.kv_heads, value.shape[-1], tiling.kv_len), dtype)

        def one_query_tile(q_index, carry):
            d_query, *sums = carry
            starts = tiling.starts(block, q_index)
            d_query_tile, *sums = _query_tile(q_index, starts, sums)
            return put_rows(d_query, d_query_tile, tiling, starts, fresh_rows(tiling, q_index)), *sums

        carry = (d_query, d_key_block, d_value_block, d_floats)
        d_query, d_key_block, d_value_block, d_floats = loop(tiling.q_tiles, one_query_tile, carry)
        starts = tiling.starts(block, 0)
        place = [*(starts.get(axis, 0) for axis in range(rank)), 0, tiling.key_head(starts), 0]

        def put_block(whole, block_sum):
            block_sum = jnp.moveaxis(block_sum, -1, rank)
            if tiling.shares > 1:
                return _add_at(whole, block_sum, place)
            return put_at(whole, block_sum.astype(whole.dtype), place)

        return d_query, put_block(d_key, d_key_block), put_block(d_value, d_value_block), d_floats

    def _query_tile(q_index, row_starts, sums):
        query_tile, left = folded_scale(pieces.similarity, rows_of(query, tiling, row_starts, keys=False), scale)
        lse_tile, remainder_tile, dlse_tile = (
            rows_of(whole, tiling, row_starts, keys=False) for whole in (lse, remainder, lse_cotangent)
        )
        # p_ij = exp(s_ij - lse_i) exp(-remainder_i). The second factor is close to 1 unless scores are huge. It
        # multiplies dout_i and shift_i instead of p_ij. It is 0 for rows without keys, whose cotangents have no effect.
        dead = jnp.isneginf(lse_tile)
        lse_tile = where(dead, 0, lse_tile)
        row_factor = where(dead, 0, jnp.exp(-remainder_tile))
        cotangent = rows_of(out_cotangent, tiling, row_starts, keys=False).astype(dtype)
        cotangent = where(dead[..., None], 0, cotangent * row_factor[..., None])
        shift_tile = jnp.zeros_like(lse_tile)
        if softmax:
            along = inner(cotangent, rows_of(out, tiling, row_starts, keys=False).astype(dtype))
            shift_tile = where(dead, 0, dlse_tile * row_factor) - along
        cotangent = operand(cotangent, value.dtype)
        scored_query_tile = query_tile
        if pieces.mask is not None or any(tiling.ragged):
            query_tile = without_nonfinite(query_tile)
            if softmax:  # Rows with allowed pairs get NaN through their lse; elsewhere only through their scores.
                scored_query_tile = query_tile
        # Materialize the rows and their transposes once per query tile; otherwise the compiler repeats the transposes
        # for every key tile.
        query_tile, cotangent = jax.lax.optimization_barrier((query_tile, cotangent))
        query_columns, cotangent_columns = jax.lax.optimization_barrier(
            (jnp.swapaxes(_by_kv_head(query_tile, group), -1, -2), jnp.swapaxes(_by_kv_head(cotangent, group), -1, -2))
        )

        def visit(place, carry, partial):
            d_query_tile, d_key_block, d_value_block, d_floats = carry
            k_index = key_tile_at(lists, place)
            starts = tiling.at_keys(row_starts, k_index)
            tile = slice_pieces(pieces, tiling, starts)
            key_tile = rows_of(key, tiling, starts, keys=True)
            value_tile = rows_of(value, tiling, starts, keys=True)
            allowed = own_pairs(pieces, tiling, starts, q_index, k_index, partial)
            raw_key_tile = key_tile
            if allowed is not None:
                key_tile = without_nonfinite(key_tile)

            if tile.similarity.is_dot:
                # NaN in a masked key reaches only its own scores, which are not used.
                raw = tile.similarity.pair(scored_query_tile, raw_key_tile)
                scores, pull = scores_vjp(tile, raw, left, allowed)
            else:
                scores, pull = pairwise_vjp(tile, query_tile, key_tile, left, allowed)
                if allowed is not None:
                    nonfinite = jnp.repeat(~jnp.isfinite(raw_key_tile).all(-1), group, axis=rank)[..., None, :]
                    if not softmax:
                        nonfinite |= ~jnp.isfinite(scored_query_tile).all(-1)[..., None]
                    scores = jnp.where(nonfinite, jnp.nan, scores)

            factor = dropout_factor(tile)
            d_weights = _grouped_scores(cotangent, value_tile)
            if factor is not None:
                d_weights = d_weights * factor
            weights, d_scores, d_floats_weights = weights_vjp(tile, scores, lse_tile, shift_tile, d_weights, allowed)
            if factor is not None:
                weights = weights * factor

            d_value_tile = _columns_product(cotangent_columns, operand(weights, value_tile.dtype), group)
            if tile.similarity.is_dot:
                d_raw, d_floats_tile = pull(d_scores)
                d_raw = operand(d_raw, key_tile.dtype)
                d_query_rows = grouped_product(d_raw, key_tile)
                d_key_tile = _columns_product(query_columns, d_raw, group)
            else:
                d_query_rows, d_key_tile, d_floats_tile = pull(d_scores)
                d_key_tile = jnp.swapaxes(d_key_tile, -1, -2)
            if d_floats_weights is not None:
                d_floats_tile = jax.tree.map(jnp.add, d_floats_tile, d_floats_weights)

            at = [0] * (rank + 2) + [starts[rank + 2]]
            return (
                d_query_tile + d_query_rows.astype(dtype),
                _add_at(d_key_block, d_key_tile, at),
                _add_at(d_value_block, d_value_tile, at),
                [_add_field(*item, starts) for item in zip(d_floats, d_floats_tile, strict=True)],
            )

        carry = (zeros(query_tile.shape, dtype), *sums)
        d_query_tile, *sums = sweep(visit, row_of(lists, row_starts, tiling, q_index), carry, apart)
        folded = scale if left == 1.0 else 1.0
        return d_query_tile * folded, *sums

    floats, _ = floats_of(pieces)
    carry = (
        zeros(query.shape, query.dtype),
        # Blocks that share key heads are summed before the result is rounded to the input's dtype.
        zeros(key.shape, key.dtype if tiling.shares == 1 else dtype),
        zeros(value.shape, value.dtype if tiling.shares == 1 else dtype),
        [zeros(jnp.shape(leaf), jnp.promote_types(jnp.result_type(leaf), dtype)) for leaf in floats],
    )
    d_query, d_key, d_value, d_floats = loop(tiling.blocks, one_block, carry)
    d_floats = [grad.astype(jnp.result_type(leaf)) for grad, leaf in zip(d_floats, floats, strict=True)]
    return d_query, d_key.astype(key.dtype), d_value.astype(value.dtype), d_floats


def _by_kv_head(rows: jax.Array, group: int) -> jax.Array:
    """`[..., q_heads, q, d]` -> `[..., kv_heads, group * q, d]`."""
    *batch, heads, length, dim = rows.shape
    return rows.reshape(*batch, heads // group, group * length, dim)


def _grouped_scores(rows: jax.Array, values: jax.Array) -> jax.Array:
    """Cotangents of the weights: products of `rows [..., q_heads, q, d]` and `values [..., kv_heads, k, d]`."""
    group = rows.shape[-3] // values.shape[-3]
    out = jnp.einsum(
        "...hqd,...hkd->...hqk", _by_kv_head(rows, group), values, preferred_element_type=accumulation_dtype(values)
    )
    return out.reshape(*rows.shape[:-1], values.shape[-2])


def _columns_product(columns: jax.Array, weights: jax.Array, group: int) -> jax.Array:
    """`columns [..., kv_heads, d, group * q]` times `weights [..., q_heads, q, k]` -> `[..., kv_heads, d, k]`."""
    return jnp.einsum(
        "...hdq,...hqk->...hdk",
        columns,
        _by_kv_head(weights, group),
        preferred_element_type=accumulation_dtype(weights),
    )


def _add_at(whole: jax.Array, tile: jax.Array, at: list[Any]) -> jax.Array:
    old = slice_at(whole, at, tile.shape)
    return put_at(whole, old + tile.astype(whole.dtype), at)


def _add_field(whole: jax.Array, tile: jax.Array, starts: dict[int, Any]) -> jax.Array:
    """Add a tile's gradient of an aligned array at the place where the array was sliced."""
    at = [starts.get(axis, 0) if whole.shape[axis] != 1 and axis in starts else 0 for axis in range(whole.ndim)]
    return _add_at(whole, tile, at)

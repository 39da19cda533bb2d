"""The best keys of each query, found tile by tile, and a call restricted to them.

Not public; used by top-k, hard and memorizing attention. Memory is q_len x (tile + count), never q_len x kv_len.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.numerics import accumulation_dtype
from ...foundation.pieces import take
from ...foundation.sharding import auto_devices, full, varying_axes
from ...ops.attention.call import Call
from ...ops.attention.implementations.reference import scored

TILE = 512


def best_keys(
    call: Call, query: jax.Array, key: jax.Array, count: int, noise: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """The `count` allowed keys with the largest scores of each query, the largest first.

    Ties go to the earlier key. There is no gradient.

    Args:
        call: the prepared call.
        query: prepared, `[batch..., q_len, q_heads, dim]`.
        key: prepared, `[batch..., kv_len, kv_heads, dim]`, `kv_len` at least `count`.
        count: number of keys.
        noise: random keys `[batch..., q_heads]`; standard Gumbel noise is then added to the scores, so that the largest
            is a sample from their softmax, and the `count` largest are a sample without replacement.

    Returns:
        Indices, and whether there is such a key, both `[batch..., q_heads, q_len, count]`.
    """
    rank, tile = len(call.batch), min(TILE, call.kv_len)
    call = _map(call, jax.lax.stop_gradient)
    query, key = jax.lax.stop_gradient((query, key))

    def visit(best, index):
        start = jnp.minimum(index * tile, call.kv_len - tile)  # the last tile starts early, so that it is whole
        part = _map(call, lambda leaf: take(leaf, {rank + 2: start}, {rank + 2: tile}))
        part = dataclasses.replace(part, kv_len=tile)
        scores, allowed = scored(part, query, jax.lax.dynamic_slice_in_dim(key, start, tile, rank))
        if noise is not None:
            scores = scores + _gumbel(noise, index, scores)
        places = jnp.broadcast_to(start + jnp.arange(tile, dtype=jnp.int32), scores.shape)
        scores = jnp.where(allowed & (places >= index * tile), scores, -jnp.inf)
        return largest_of(best, (scores, places)), None

    shape = (*call.batch, call.q_heads, call.q_len, count)
    axes = varying_axes(query, key, noise, call.pieces)
    first = full(shape, -jnp.inf, accumulation_dtype(query, key), axes), full(shape, 0, jnp.int32, axes)
    tiles = jnp.arange(-(-call.kv_len // tile), dtype=jnp.int32)
    (values, chosen), _ = jax.lax.scan(visit, first, tiles)
    return chosen, ~jnp.isneginf(values)


def _gumbel(keys: jax.Array, index: jax.Array, like: jax.Array) -> jax.Array:
    """Gumbel noise of a tile, from the random key of each example and head; independent of the tiling."""

    def draw(key: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(key, index), like.shape[-2:], like.dtype)

    for _ in range(keys.ndim):
        draw = jax.vmap(draw)
    return draw(keys)


def score_chosen(call: Call, query: jax.Array, key: jax.Array, chosen: jax.Array) -> tuple[Call, jax.Array, jax.Array]:
    """A call in which each query is its own batch element with its chosen keys, and the scores of that call.

    Args:
        call: the prepared call.
        query: the prepared queries.
        key: the prepared keys.
        chosen: indices `[batch..., q_heads, q_len, count]`.

    Returns:
        The call, and the scores and allowed pairs, both `[batch..., q_len, q_heads, 1, count]`. Differentiable in the
        arrays and in those of the pieces.
    """
    rank = len(call.batch)

    def one(leaf):
        """`[batch..., head, query, key, own...]` -> `[batch..., query, head, 1, chosen, own...]`."""
        if leaf.shape[rank + 2] > 1:
            places = chosen.reshape(chosen.shape + (1,) * (leaf.ndim - rank - 3))
            leaf = jnp.take_along_axis(jnp.asarray(leaf), places, axis=rank + 2)
        return jnp.expand_dims(jnp.moveaxis(leaf, rank + 1, rank), rank + 2)

    call = dataclasses.replace(
        _map(call, one),
        batch=(*call.batch, call.q_len),
        q_len=1,
        kv_len=chosen.shape[-1],
        kv_heads=call.q_heads,
    )
    return call, *scored(call, query[..., None, :, :], take_chosen(key, chosen))


def take_chosen(array: jax.Array, chosen: jax.Array) -> jax.Array:
    """Gather the chosen keys of `[batch..., kv_len, kv_heads, d]`: `[batch..., q_len, count, q_heads, d]`."""
    *batch, q_heads, q_len, count = chosen.shape
    per_head = jnp.swapaxes(array, -3, -2)
    kv_heads, dim = per_head.shape[-3], per_head.shape[-1]
    places = chosen.reshape(*batch, kv_heads, q_heads // kv_heads * q_len * count, 1)
    found = jnp.take_along_axis(per_head, places, axis=-2).reshape(*batch, q_heads, q_len, count, dim)
    return jnp.moveaxis(found, -4, -2)


def _map(call: Call, function: Any) -> Call:
    """Apply `function` to every aligned array of the call's pieces and to its positions."""
    return dataclasses.replace(call, pieces=jax.tree.map(function, call.pieces))


def largest_of(best: tuple[jax.Array, jax.Array], more: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The largest of the numbers kept so far and of more numbers, with their places. Keeps the first of ties.

    Args:
        best: numbers `[..., count]` and their places.
        more: numbers `[..., n]` and their places.

    Returns:
        `[..., count]` numbers, the largest first, and their places.
    """
    count = best[0].shape[-1]
    values, places = (jnp.concatenate(pair, -1) for pair in zip(best, more, strict=True))
    if auto_devices(values) > 1:  # XLA would gather the operand of `top_k`, but not that of a sort
        keys = jnp.where(jnp.isnan(values), -jnp.inf, -values)
        _, values, places = jax.lax.sort((keys, values, places), dimension=-1, num_keys=1)
        return values[..., :count], places[..., :count]
    values, order = jax.lax.top_k(values, count)
    return values, jnp.take_along_axis(places, order, -1)

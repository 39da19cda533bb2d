"""The scores of all pairs, computed by a similarity's own methods."""

import jax.numpy as jnp
import numpy as np

from jattn.foundation.pieces import align


def pair_numbers(similarity, query, key):
    """`[batch..., q_heads, q_len, kv_len]`, as an implementation would compute them without tiles."""
    query, key = jnp.asarray(query), jnp.asarray(key)
    *batch, q_len, q_heads, _ = query.shape
    sizes = {"head": q_heads, "query": q_len, "key": key.shape[-3]}
    prepared = similarity.prepare(query, key)
    aligned = align(similarity, tuple(batch), sizes)
    numbers = aligned.pair(jnp.swapaxes(prepared.query, -3, -2), jnp.swapaxes(prepared.key, -3, -2)) * prepared.scale
    rank = len(batch) + 3
    positions = [
        np.arange(size).reshape([1] * (rank - 2) + shape) for size, shape in ((q_len, [-1, 1]), (sizes["key"], [1, -1]))
    ]
    for score in align(prepared.scores, tuple(batch), sizes):
        numbers = score.modify(numbers, *positions)
    return numbers


def per_query_head(key, q_heads):
    """Keys `[..., length, kv_heads, dim]`, repeated for the query heads that share them."""
    return np.repeat(key, q_heads // key.shape[-2], axis=-2)

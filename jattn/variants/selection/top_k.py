"""Attention over the best keys only."""

from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_positive
from ...foundation.arrays import as_jax
from ...ops.attention.by_example import by_example
from ...ops.attention.call import Pieces, prepare
from ...ops.attention.tile import multiply_values
from .best_keys import best_keys, score_chosen, take_chosen


@by_example("length head dim", query="length head dim", key="length head dim", value="length head dim")
def top_k(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    count: int,
    *,
    mask: Any = None,
    similarity: Any = None,
    scores: Any = (),
    normalizer: Any = None,
    query_positions: Any = None,
    key_positions: Any = None,
) -> jax.Array:
    """Top-k attention: each query attends to the `count` allowed keys with the largest scores.

        K_i = the `count` largest of { score_ij : j allowed },    out_i = Σ_{j in K_i} w_ij value_j

    with w the normalizer's weights over K_i. The selection is exact; ties go to the earlier key. The gradient is that
    of attention over K_i, with the set held constant. After Zhao et al. 2019 (arXiv:1912.11637), who keep all keys tied
    with the smallest selected score, and so may keep more.

    Scores are computed tile by tile with a running top-k, then again for the selected keys: time is quadratic (no tile
    is skipped, whatever the mask), and memory is q_len x (tile + count x dims).

    Args:
        query: `[..., q_len, q_heads, qk_dim]`.
        key: `[..., kv_len, kv_heads, qk_dim]`.
        value: `[..., kv_len, kv_heads, v_dim]`.
        count: number of keys, at least 1; if it exceeds kv_len, all keys.
        mask: as in `jattn.attention`, like all that follow.
        similarity: maps a query and a key to a number.
        scores: modify it, before the best are chosen.
        normalizer: maps the chosen scores to weights.
        query_positions: absolute.
        key_positions: absolute.

    Returns:
        `[..., q_len, q_heads, v_dim]`, in the dtype of `value`; 0 for a query that may attend to nothing.

    Raises:
        ValueError: `count` is below 1; as in `jattn.attention`.

    >>> import jax
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (2, 100, 8, 16)) for i in range(3))
    >>> top_k(q, k, v, 4, mask=lambda q, k: k <= q).shape
    (2, 100, 8, 16)
    """
    check_positive(count=count)
    query, key, value = as_jax(query, key, value)
    pieces = Pieces(mask, similarity, scores, normalizer, None, query_positions, key_positions)
    call, query, key = prepare(query, key, value, pieces)
    if 0 in (call.q_len, call.kv_len):
        return jnp.zeros((*call.batch, call.q_len, call.q_heads, call.v_dim), value.dtype)
    chosen, found = best_keys(call, query, key, min(count, call.kv_len))
    few, chosen_scores, allowed = score_chosen(call, query, key, chosen)
    allowed = allowed & jnp.swapaxes(found, -3, -2)[..., None, :]
    weights = few.pieces.normalizer.weights(chosen_scores, allowed)
    out = multiply_values(weights, jnp.swapaxes(take_chosen(value, chosen), -3, -2), allowed)
    return out[..., 0, :].astype(value.dtype)

"""Normalisers that give weight 0 to all but the best keys: sparsemax and 1.5-entmax, exact by sorting.

Both find a row's support (the keys with weight above 0) from the sorted scores, without gradient, and then write the
weights as smooth functions of the scores on that support: derivatives of any order and mode follow, exact wherever
the support does not change.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..pieces import piece
from .base import Normalizer


class Rows(NamedTuple):
    """Rows of scores made ready: what is not `near` cannot have weight, as it is 1 or more below the largest."""

    shifted: jax.Array  # scores times a factor, less their largest; 0 where not near
    near: jax.Array
    ordered: jax.Array  # without gradient, descending; -1 where not near
    broken: jax.Array  # rows with NaN or +inf


def make_ready(scores: jax.Array, allowed: jax.Array, factor: float) -> Rows:
    """Shift rows, which changes no weight, so that only differences below 1 matter."""
    valid = allowed & ~jnp.isneginf(scores)
    scores = jnp.where(valid, scores, 0) * factor
    top = jax.lax.stop_gradient(jnp.where(valid, scores, -jnp.inf).max(-1, keepdims=True, initial=-jnp.inf))
    broken = (jnp.isnan(top) | jnp.isposinf(top)) & valid
    shifted = scores - jnp.where(jnp.isfinite(top), top, 0)
    near = valid & (shifted > -1)
    ordered = jnp.sort(jax.lax.stop_gradient(jnp.where(near, shifted, -1)), axis=-1, descending=True)
    return Rows(jnp.where(near, shifted, 0), near, ordered, broken)


def ranks(ordered: jax.Array) -> jax.Array:
    """1, 2, ... along the last axis."""
    return jnp.arange(1, ordered.shape[-1] + 1, dtype=ordered.dtype)


def at_rank(values: jax.Array, size: jax.Array) -> jax.Array:
    """`values` of the rank `size` in each row, 1 for the first."""
    return jnp.take_along_axis(values, jnp.maximum(size - 1, 0), axis=-1, mode="clip")


@piece
class Sparsemax(Normalizer):
    """max(score - tau, 0), tau such that the row sums to 1 (Martins & Astudillo 2016, arXiv:1602.02068).

    The Euclidean projection of the scores onto the simplex; many weights are exactly 0.

    >>> import jax, jattn
    >>> q, k = (jax.random.normal(jax.random.key(i), (10, 2, 4)) for i in range(2))
    >>> jattn.attention_weights(q, k, normalizer=jattn.normalizers.Sparsemax()).shape
    (2, 10, 10)
    """

    streams = None
    why_not = "the threshold of a row is found by sorting all of its scores"

    def weights(self, scores, allowed):
        if scores.shape[-1] == 0:
            return scores
        rows = make_ready(scores, allowed, 1.0)
        sums, rank = jnp.cumsum(rows.ordered, -1), ranks(rows.ordered)
        inside = (1 + rank * rows.ordered > sums) & (rows.ordered > -1)
        size = inside.sum(-1, keepdims=True)
        tau = (at_rank(sums, size) - 1) / jnp.maximum(size, 1)
        support = rows.near & (rows.shifted > tau)
        count = jnp.maximum(support.sum(-1, keepdims=True), 1).astype(scores.dtype)
        tau = (jnp.where(support, rows.shifted, 0).sum(-1, keepdims=True) - 1) / count
        return jnp.where(rows.broken, jnp.nan, jnp.where(support, rows.shifted - tau, 0))


@piece
class Entmax15(Normalizer):
    """max(score / 2 - tau, 0)², tau such that the row sums to 1 (Peters et al. 2019, arXiv:1905.05702).

    Entmax with alpha = 1.5, between softmax (1) and sparsemax (2); many weights are exactly 0.

    >>> import jax, jattn
    >>> q, k = (jax.random.normal(jax.random.key(i), (10, 2, 4)) for i in range(2))
    >>> jattn.attention_weights(q, k, normalizer=jattn.normalizers.Entmax15()).shape
    (2, 10, 10)
    """

    streams = None
    why_not = "the threshold of a row is found by sorting all of its scores"

    def weights(self, scores, allowed):
        if scores.shape[-1] == 0:
            return scores
        rows = make_ready(scores, allowed, 0.5)
        rank = ranks(rows.ordered)
        mean = jnp.cumsum(rows.ordered, -1) / rank
        spread = jnp.cumsum(rows.ordered**2, -1) - rank * mean**2
        taus = mean - jnp.sqrt(jnp.maximum(1 - spread, 0) / rank)
        size = ((taus <= rows.ordered) & (rows.ordered > -1)).sum(-1, keepdims=True)
        support = rows.near & (rows.shifted > at_rank(taus, size))
        count = jnp.maximum(support.sum(-1, keepdims=True), 1).astype(scores.dtype)
        mean = jnp.where(support, rows.shifted, 0).sum(-1, keepdims=True) / count
        spread = jnp.where(support, (rows.shifted - mean) ** 2, 0).sum(-1, keepdims=True)
        tau = mean - jnp.sqrt((1 - spread) / count)
        return jnp.where(rows.broken, jnp.nan, jnp.where(support, rows.shifted - tau, 0) ** 2)

"""Sparse normalizers, sparsemax and 1.5-entmax, computed exactly by sorting.

Both give most keys a weight of exactly 0. The support of a row (its keys with nonzero weight) is found from the sorted
scores, without gradient. On that support the weights are then written as smooth functions of the scores, so derivatives
of any order and mode are exact wherever the support does not change.
"""

import abc
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from ..foundation.arrays import of_rank
from ..foundation.pieces import piece
from .softmax import Normalizer


class Rows(NamedTuple):
    """Rows of scores, shifted so that their maximum is 0. Keys 1 or more below it (not `near`) have weight 0."""

    shifted: jax.Array  # scores times a factor, minus their maximum; 0 where not near
    near: jax.Array
    ordered: jax.Array  # `shifted`, sorted in descending order, without gradient; -1 where not near
    nonfinite: jax.Array  # rows with NaN or +inf


def make_ready(scores: jax.Array, allowed: jax.Array, factor: float) -> Rows:
    """Scale and shift the rows, which changes no weight; keys 1 or more below the maximum are set apart."""
    valid = allowed & ~jnp.isneginf(scores)
    scores = jnp.where(valid, scores, 0) * factor
    top = jax.lax.stop_gradient(jnp.where(valid, scores, -jnp.inf).max(-1, keepdims=True, initial=-jnp.inf))
    nonfinite = (jnp.isnan(top) | jnp.isposinf(top)) & valid
    shifted = scores - jnp.where(jnp.isfinite(top), top, 0)
    near = valid & (shifted > -1)
    ordered = jnp.sort(jax.lax.stop_gradient(jnp.where(near, shifted, -1)), axis=-1, descending=True)
    return Rows(jnp.where(near, shifted, 0), near, ordered, nonfinite)


class SortedThreshold(Normalizer):
    """max(factor * score - tau, 0)^power, where tau follows from the mean and spread of the scores in the support."""

    streams_as = None
    finite_at_zero = True
    refusal = "the threshold of a row is found by sorting all of its scores"
    factor: ClassVar[float]
    power: ClassVar[int]

    @abc.abstractmethod
    def threshold(self, mean: jax.Array, spread: jax.Array, count: jax.Array) -> jax.Array:
        """tau of a support of `count` scores with the given mean and sum of squared deviations (`spread`)."""

    def weights(self, scores, allowed):
        if scores.shape[-1] == 0:
            return scores
        rows = make_ready(scores, allowed, self.factor)
        rank = of_rank(jnp.arange(1, scores.shape[-1] + 1, dtype=scores.dtype), scores.ndim)
        mean = jnp.cumsum(rows.ordered, -1) / rank
        taus = self.threshold(mean, jnp.cumsum(rows.ordered**2, -1) - rank * mean**2, rank)
        size = ((taus <= rows.ordered) & (rows.ordered > -1)).sum(-1, keepdims=True)
        # The sorted scores carry no gradient. Recompute the threshold from the support, unsorted, which does.
        tau = jnp.take_along_axis(taus, jnp.maximum(size - 1, 0), axis=-1, mode="clip")
        support = rows.near & (rows.shifted > tau)
        count = jnp.maximum(support.sum(-1, keepdims=True), 1).astype(scores.dtype)
        mean = jnp.where(support, rows.shifted, 0).sum(-1, keepdims=True) / count
        spread = jnp.where(support, (rows.shifted - mean) ** 2, 0).sum(-1, keepdims=True)
        tau = self.threshold(mean, spread, count)
        return jnp.where(rows.nonfinite, jnp.nan, jnp.where(support, rows.shifted - tau, 0) ** self.power)


@piece
class Sparsemax(SortedThreshold):
    """max(score - tau, 0), with tau chosen so that the row sums to 1 (Martins & Astudillo 2016, arXiv:1602.02068).

    The Euclidean projection of the scores onto the probability simplex. Many weights are exactly 0. It needs all scores
    of a row at once, so `reference` computes it, and the other implementations refuse it.

    >>> import jax, jattn
    >>> q, k = (jax.random.normal(jax.random.key(i), (10, 2, 4)) for i in range(2))
    >>> jattn.attention_weights(q, k, normalizer=jattn.normalizers.Sparsemax()).shape
    (2, 10, 10)
    """

    factor = 1.0
    power = 1

    def threshold(self, mean, spread, count):
        return mean - 1 / count


@piece
class Entmax15(SortedThreshold):
    """max(score / 2 - tau, 0)², with tau chosen so that the row sums to 1 (Peters et al. 2019, arXiv:1905.05702).

    Entmax with alpha = 1.5, between softmax (alpha = 1) and sparsemax (alpha = 2). Many weights are exactly 0. Like
    `Sparsemax`, it is computed by `reference` alone.

    >>> import jax, jattn
    >>> q, k = (jax.random.normal(jax.random.key(i), (10, 2, 4)) for i in range(2))
    >>> jattn.attention_weights(q, k, normalizer=jattn.normalizers.Entmax15()).shape
    (2, 10, 10)
    """

    factor = 0.5
    power = 2

    def threshold(self, mean, spread, count):
        return mean - jnp.sqrt(jnp.maximum(1 - spread, 0) / count)

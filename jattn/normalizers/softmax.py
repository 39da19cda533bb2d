"""Softmax, with or without an attention sink."""

from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.fields import floats, set_field
from ..foundation.numerics import shifted_exp
from ..foundation.pieces import array, piece
from .base import Normalizer


@piece
class Softmax(Normalizer):
    """exp(score_j) / (Σ_i exp(score_i) + exp(sink)); without a sink, the plain softmax.

    A sink is a learned logit without a value: it acts like one more key with that score and a value of 0, so that a
    query can attend to nothing in particular. It enters each row exactly once. A query whose keys are all masked has
    zero weights in either case. The `lse` of a partial result does not include the sink.

    Args:
        sink: None, or one logit per head, floating-point `[batch..., heads]`.
        query_sink: alternatively one logit per query, floating-point `[batch..., heads or 1, q_len]`, for sinks that
            are computed from the queries. Indexed by the queries of the call, not by their positions.

    Raises:
        ValueError: `sink` or `query_sink` is not a floating-point array, or both are given.

    >>> import jax, jattn
    >>> q, k = (jax.random.normal(jax.random.key(i), (10, 2, 4)) for i in range(2))
    >>> weights = jattn.attention_weights(q, k, normalizer=jattn.normalizers.Softmax.off_by_one())
    >>> bool((weights.sum(-1) < 1).all())
    True
    """

    sink: jax.Array | np.ndarray | None = array("head", default=None)
    query_sink: jax.Array | np.ndarray | None = array("head", "query", default=None)
    streams_as = "softmax"
    finite_at_zero = True

    def __post_init__(self):
        if self.sink is not None and self.query_sink is not None:
            raise ValueError("`sink` and `query_sink` exclude each other: a query has one sink. Add them up.")
        if self.sink is not None:
            set_field(self, "sink", floats("sink", self.sink, ("head",), shared=("head",)))
        if self.query_sink is not None:
            set_field(self, "query_sink", floats("query_sink", self.query_sink, ("head", "query")))

    @classmethod
    def off_by_one(cls) -> Self:
        """exp(score_j) / (1 + Σ_i exp(score_i)), "softmax off by one": a sink of 0."""
        return cls(np.zeros(1, np.float32))

    @property
    def mergeable(self) -> bool:  # type: ignore[override]  (here it depends on the sink)
        return self.sink is None and self.query_sink is None

    def weights(self, scores, allowed):
        scores = jnp.where(allowed, scores, -jnp.inf)
        sink = self.query_sink if self.sink is None else self.sink
        if sink is not None:
            sink = sink.astype(scores.dtype)
        top, mass = shifted_exp(scores, least=sink)
        total = mass.sum(-1, keepdims=True)
        if sink is not None:
            total = total + jnp.exp(sink - jnp.where(jnp.isneginf(top), 0, top))
        return mass / jnp.where(total == 0, 1, total)

    def rescale(self, out, lse, remainder=0.0):
        sink = self.query_sink if self.sink is None else self.sink
        if sink is None:
            return out
        aligned = sink.ndim == lse.ndim + 1  # [batch..., head, query or 1, 1]
        rows = sink[..., 0] if aligned else sink if self.sink is None else sink[..., None]
        empty = jnp.isneginf(lse)
        above = (jnp.where(empty, 0, lse) - jnp.swapaxes(rows, -1, -2).astype(lse.dtype)) + jax.lax.stop_gradient(
            remainder
        )
        share = jnp.where(empty, 0, jax.nn.sigmoid(above))
        return out * share[..., None]

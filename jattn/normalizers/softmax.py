"""Normalizers, which turn a row of scores into weights, and the default: softmax, with or without a sink."""

import abc
from typing import ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.fields import floats, set_field
from ..foundation.numerics import shifted_exp
from ..foundation.pieces import Piece, array, piece
from ..scores.base import Score


class Normalizer(Piece, abc.ABC):
    """Turns a row of scores into weights.

    To add a normalizer, subclass `Normalizer`, decorate the class with `@piece`, and implement `weights`, which is the
    definition. The reference implementation calls it on whole rows. Implementations that see one tile of keys at a time
    need a second form, which `streams_as` names:

    - `None` (the default): there is none. Streaming implementations refuse the normalizer and quote `refusal`.
    - `"softmax"`: with `lse = log Σ_j exp(score_j)`, the output is `rescale(Σ_j exp(score_j - lse) value_j, lse)`.
      Implementations compute the sum and `lse` online; only `rescale` differs from a plain softmax.
    - `"elementwise"`: with `lse = log(number of keys that the query may attend to)`, the output is
      `rescale(Σ_j activation(score_j) value_j, lse)`.

    All methods are differentiated by JAX, in the scores and in the piece's own arrays.

    Attributes:
        streams_as: the streaming form.
        refusal: why there is no streaming form, for the error message.
        mergeable: whether partial results over disjoint sets of keys can be merged from their outputs and `lse` alone.
        finite_at_zero: whether all derivatives are finite where the score of a masked pair is replaced by 0. Masked
            pairs then need no other stand-in, which is cheaper.

    >>> import jax, jax.numpy as jnp, jattn
    >>> from jattn.foundation.pieces import piece
    >>> @piece
    ... class Square(jattn.normalizers.Normalizer):
    ...     "score², as unnormalized weight."
    ...
    ...     streams_as = "elementwise"
    ...     finite_at_zero = True
    ...
    ...     def weights(self, scores, allowed):
    ...         return jnp.where(allowed, jnp.where(allowed, scores, 0) ** 2, 0)
    ...
    ...     def activation(self, scores):
    ...         return scores**2
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (10, 2, 4)) for i in range(3))
    >>> tiled, reference = (
    ...     jattn.attention(q, k, v, normalizer=Square(), implementation=one) for one in ("tiled", "reference")
    ... )
    >>> bool(jnp.allclose(tiled, reference, atol=1e-5))
    True
    """

    streams_as: ClassVar[Literal["softmax", "elementwise"] | None] = None
    refusal: ClassVar[str] = "its weights need the whole row of scores at once"
    mergeable: ClassVar[bool] = False
    finite_at_zero: ClassVar[bool] = False

    @abc.abstractmethod
    def weights(self, scores: jax.Array, allowed: jax.Array) -> jax.Array:
        """The weights of a row: the definition, used by `reference` and `attention_weights`.

        Args:
            scores: `[batch..., head, q, k]`, float32 (float64 for float64 inputs).
            allowed: booleans that broadcast with `scores`. Scores of other pairs are arbitrary and may be NaN.

        Returns:
            Weights of the shape of `scores`, 0 where `allowed` is False. A row without an allowed key has zero weights
            and zero gradients.
        """

    def extra_scores(self) -> tuple[Score, ...]:
        """Scores to apply after the caller's, such as the bias of a sigmoid. Implementations need no code for it."""
        return ()

    def activation(self, scores: jax.Array) -> jax.Array:
        """The unnormalized weight of an `"elementwise"` normalizer; elementwise and differentiable."""
        raise TypeError(f"{type(self).__name__} is not an elementwise normalizer")

    def rescale(self, out: jax.Array, lse: jax.Array, remainder: jax.Array | float = 0.0) -> jax.Array:
        """Convert the streamed sum into the output. By default they are the same.

        Args:
            out: `[batch..., q_len, q_heads, v_dim]`: Σ_j exp(score_j - lse) value_j, or Σ_j activation(score_j)
                value_j.
            lse: `[batch..., q_len, q_heads]`, as defined above; -inf for a query that attends to nothing.
            remainder: the rounding error of `lse` (see `Partial`). It matters only for lse of about 1e6 and more.
        """
        del lse, remainder
        return out


@piece
class Softmax(Normalizer):
    """exp(score_j) / (Σ_i exp(score_i) + exp(sink)); without a sink, the plain softmax.

    A sink is a learned logit without a value: it acts like one more key with that score and a value of 0, so that a
    query can attend to nothing in particular, as in gpt-oss, arXiv:2508.10925. It enters each row exactly once. A query
    whose keys are all masked has zero weights in either case. The `lse` of a partial result does not include the sink.

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

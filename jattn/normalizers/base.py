"""The base class of normalizers, which turn a row of scores into weights."""

import abc
from typing import ClassVar, Literal

import jax

from ..foundation.pieces import Piece
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

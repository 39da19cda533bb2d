"""A normalizer turns a row of scores into weights."""

import abc
from typing import ClassVar, Literal

import jax

from ..foundation.pieces import Piece
from ..scores.base import Score


class Normalizer(Piece, abc.ABC):
    """From scores to weights.

    `weights` is the definition. A normalizer that can be computed a tile of keys at a time says how in `streams_as`:

    - `"softmax"`: weights are `exp(score - lse)`, up to what `finish` does to the summed values;
    - `"elementwise"`: weights are `activation(score)`, up to what `finish` does; `log_mass` of the partial result is
      then the logarithm of the number of keys that the query may attend;
    - `None`: a row is needed whole, and implementations that stream refuse, giving `why_not`.
    """

    streams_as: ClassVar[Literal["softmax", "elementwise"] | None] = None
    refusal: ClassVar[str] = "its weights need the whole row of scores at once"
    mergeable: ClassVar[bool] = False  # whether partial results over disjoint keys merge by their lse alone

    finite_at_zero: ClassVar[bool] = False  # whether derivatives are finite where a pair that may not attend scores 0

    @abc.abstractmethod
    def weights(self, scores: jax.Array, allowed: jax.Array) -> jax.Array:
        """Weights over the last axis of `scores [batch..., head, q, k]`, 0 where `allowed` (broadcast) is False.

        A row in which nothing is allowed has zero weights and zero gradients. The piece's own arrays are aligned.
        """

    def extra_scores(self) -> tuple[Score, ...]:
        """Scores to apply first (a bias, say), so that streaming implementations need not know of them."""
        return ()

    def activation(self, scores: jax.Array) -> jax.Array:
        """Of an `"elementwise"` normalizer: the unnormalized weight, elementwise and differentiable."""
        raise TypeError(f"{type(self).__name__} is no elementwise normalizer")

    def rescale(self, out: jax.Array, lse: jax.Array, remainder: jax.Array | float = 0.0) -> jax.Array:
        """From the streamed sum to the output.

        Args:
            out: `[batch..., q_len, q_heads, v_dim]`, the values weighted by `exp(score - lse)`, or by `activation`.
            lse: `[batch..., q_len, q_heads]`, -inf for a query that attends to nothing.
            remainder: what rounding removed from `lse` (see `Partial`); it matters for an lse of 1e6 and more.
        """
        del lse, remainder
        return out

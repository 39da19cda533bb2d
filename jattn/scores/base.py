"""The base class of scores, which modify the number of a pair, and scores from functions."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.functions import Traced, fill_indices, given_indices, indices_of, takes_indices, trace
from ..foundation.pieces import Piece, array, constants, piece


class Score(Piece, abc.ABC):
    """Modifies the score of each (query, key) pair, before the mask and the normalizer.

    To add a score, subclass `Score`, decorate the class with `@piece`, and implement `modify` with elementwise JAX
    operations. Scores are applied in the order in which they are passed. The piece's own array fields are aligned to
    `[batch..., head, query, key, own...]` beforehand, so plain broadcasting is enough. JAX differentiates `modify`, in
    the scores and in every array that the piece holds.

    Where `modify` is differentiated, masked pairs are replaced by allowed ones, so that no NaN of a masked pair can
    enter a gradient. Positions and arrays then vary along both the query and the key axis; do not assume otherwise.

    Attributes:
        finite_at_zero: whether `modify` and its derivatives are finite for a score of 0, at any positions and for any
            arrays. If so, a masked pair is replaced by a score of 0 instead, which is cheaper.

    >>> import jax, jax.numpy as jnp, jattn
    >>> from jattn.foundation.pieces import array, piece
    >>> @piece
    ... class Recency(jattn.scores.Score):
    ...     "score - rate * log(1 + distance)."
    ...
    ...     rate: jax.Array = array("head")
    ...     finite_at_zero = True
    ...
    ...     def modify(self, scores, query, key):
    ...         return scores - self.rate * jnp.log1p(jnp.abs(query - key))
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (10, 2, 4)) for i in range(3))
    >>> jattn.attention(q, k, v, scores=Recency(jnp.array([0.5, 1.0]))).shape
    (10, 2, 4)
    """

    finite_at_zero: ClassVar[bool] = False

    @abc.abstractmethod
    def modify(self, scores: jax.Array, query: jax.Array, key: jax.Array) -> jax.Array:
        """The modified scores.

        Args:
            scores: `[batch..., head, q, k]`, float32 (float64 for float64 inputs).
            query: int32 absolute positions that broadcast with `scores`, usually `[..., 1, q, 1]`.
            key: int32 absolute positions, usually `[..., 1, 1, k]`.

        Returns:
            An array of the shape and dtype of `scores`.
        """


@piece
class Function(Score):
    """A user's function of a score and two positions, or also of the batch and head index (see `of`).

    `heads` and `examples` hold the head and batch indices. They are None if the function does not use them, or until a
    call fills them in.
    """

    function: Traced
    wide: Traced | None  # traced in float64, if JAX has it enabled
    captured: tuple[jax.Array, ...] = constants()
    heads: jax.Array | np.ndarray | None = array("head", default=None)
    examples: jax.Array | np.ndarray | None = array(default=None)

    def indexed(self, batch, q_heads, split=()):
        return fill_indices(self, batch, q_heads, split, reader="scores.of")

    def modify(self, scores, query, key):
        function = self.function if self.wide is None or scores.dtype != jnp.float64 else self.wide
        return function(self.captured, scores, *indices_of(self), query, key).astype(scores.dtype)


def of(function: Callable[..., jax.Array], *, heads: Any = None, examples: Any = None) -> Score:
    """A score from any JAX function `(score, query_position, key_position) -> score` of three scalars.

    A function of five arguments, `(score, batch, head, query_position, key_position) -> score`, is FlexAttention's
    `score_mod` (Dong et al. 2024, arXiv:2412.05496). Indices work as in `jattn.masks.of`. Floating-point arrays that
    the function closes over are differentiated, like the fields of any other piece.

    Args:
        function: takes one floating-point scalar and int32 scalars, and returns one floating-point scalar.
        heads: integers `[heads]`, as in `jattn.masks.of`.
        examples: integers `[batch...]`, as in `jattn.masks.of`.

    Raises:
        ValueError: `function` is not callable, takes a different number of arguments, or does not return one
            floating-point number; or, at the call, it uses an index that is unknown.

    >>> import jax.numpy as jnp, jattn
    >>> closer = jattn.scores.of(lambda s, q, k: s - 0.1 * abs(q - k))
    >>> slopes = jnp.array([0.5, 0.25])
    >>> alibi = jattn.scores.of(lambda s, b, h, q, k: s - slopes[h] * abs(q - k))
    """
    if not callable(function):
        raise ValueError(f"`function` must be a function of a score and two positions; got {function!r}.")
    indexed = takes_indices(function, 3, "(score, query, key) or (score, batch, head, query, key)")
    integers = [jnp.int32] * (4 if indexed else 2)
    traced, captured, result = trace(function, jnp.float32, *integers)
    if not jnp.issubdtype(getattr(result, "dtype", jnp.bool_), jnp.floating) or result.shape != ():
        raise ValueError(f"`function` must return one floating-point score; got {result}.")
    wide = None
    if jnp.result_type(float) == jnp.float64:  # float64 is enabled
        wide, others, _ = trace(function, jnp.float64, *integers)
        assert [jnp.shape(one) for one in others] == [jnp.shape(one) for one in captured]
    return Function(traced, wide, captured, **given_indices(traced, heads, examples))


def as_score(value: Any) -> Any:
    """Turn a function into `of(function)`; return anything else unchanged."""
    return value if isinstance(value, (Score, type)) or not callable(value) else of(value)  # pyright: ignore[reportArgumentType]  (what it returns is checked by `of`)

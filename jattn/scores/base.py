"""A score changes the number that a (query, key) pair has; scores are applied in the order written."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.functions import Traced, fill_indices, given_indices, indices_of, takes_indices, trace
from ..foundation.pieces import Piece, array, constants, piece


class Score(Piece, abc.ABC):
    """What happens to a score before the mask and the normalizer.

    `modify` is elementwise and evaluated by plain broadcasting: `scores [batch..., head, q, k]` in float32 (float64),
    `query [..., 1, q, 1]` and `key [..., 1, 1, k]` absolute positions, the piece's own arrays aligned to
    `[batch..., head, query, key, own...]`. It is differentiated in the scores and in every array the piece holds.

    Pairs that may not attend never reach `modify` when it is differentiated: in their place it is given pairs that may
    (positions and arrays then vary over both the query and the key axis).
    """

    finite_at_zero: ClassVar[bool] = False
    """Whether `modify` and its derivatives are finite for a score of 0, at any positions and with any arrays. If so,
    a score of 0 is all that replaces a pair that may not attend, which is cheaper."""

    @abc.abstractmethod
    def modify(self, scores: jax.Array, query: jax.Array, key: jax.Array) -> jax.Array:
        """The new scores, of the same shape."""


@piece
class Function(Score):
    """A user's own function of a score and two positions, or of a score, the indices and two positions (see `of`).

    The indices are None where the function does not read them, and until a call fills them in.
    """

    function: Traced
    wide: Traced | None  # in float64, where JAX has it
    captured: tuple[jax.Array, ...] = constants()
    heads: jax.Array | np.ndarray | None = array("head", default=None)
    examples: jax.Array | np.ndarray | None = array(default=None)

    def indexed(self, batch, q_heads, split=()):
        return fill_indices(self, batch, q_heads, split, reader="scores.of")

    def modify(self, scores, query, key):
        function = self.function if self.wide is None or scores.dtype != jnp.float64 else self.wide
        return function(self.captured, scores, *indices_of(self), query, key).astype(scores.dtype)


def of(function: Callable[..., jax.Array], *, heads: Any = None, examples: Any = None) -> Score:
    """The score `function(score, query_position, key_position) -> score`, from any JAX function of three scalars.

    With five arguments it is `function(score, batch, head, query_position, key_position)`, the `score_mod` of
    FlexAttention (Dong et al. 2024, arXiv:2412.05496). The indices and their limits are those of `jattn.masks.of`.
    Arrays that the function closes over are differentiated like the fields of any other piece, if they are
    floating-point.

    Args:
        function: takes a floating-point and int32 scalars and returns one floating-point number.
        heads, examples: as of `jattn.masks.of`.

    Raises:
        ValueError: `function` is not callable, takes another number of arguments, or does not return one
            floating-point number; at the call, an index that is not known.

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
    """A function becomes `of(function)`; anything else is as it was."""
    return value if isinstance(value, (Score, type)) or not callable(value) else of(value)  # pyright: ignore[reportArgumentType]  (what it returns is checked by `of`)

"""A score changes the number that a (query, key) pair has; scores are applied in the order written."""

import abc
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ..functions import Traced, trace
from ..pieces import Piece, constants, piece


class Score(Piece, abc.ABC):
    """What happens to a score before the mask and the normaliser.

    `modify` is elementwise and evaluated by plain broadcasting: `scores [batch..., head, q, k]` in float32 (float64),
    `query [..., 1, q, 1]` and `key [..., 1, 1, k]` absolute positions, the piece's own arrays aligned to
    `[batch..., head, query, key, own...]`. It is differentiated in the scores and in every array the piece holds.
    """

    @abc.abstractmethod
    def modify(self, scores: jax.Array, query: jax.Array, key: jax.Array) -> jax.Array:
        """The new scores, of the same shape."""


@piece
class Function(Score):
    """A user's own function of a score and two positions (see `of`)."""

    function: Traced
    wide: Traced | None  # in float64, where JAX has it
    captured: tuple[jax.Array, ...] = constants()

    def modify(self, scores, query, key):
        function = self.function if self.wide is None or scores.dtype != jnp.float64 else self.wide
        return function(self.captured, scores, query, key).astype(scores.dtype)


def of(function: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]) -> Score:
    """The score `function(score, query_position, key_position) -> score`, from any JAX function of three scalars.

    Arrays that the function closes over are differentiated like the fields of any other piece.

    Raises:
        ValueError: `function` is not callable or does not return one floating-point number.

    >>> import jattn
    >>> closer = jattn.scores.of(lambda s, q, k: s - 0.1 * abs(q - k))
    """
    if not callable(function):
        raise ValueError(f"`function` must be a function of a score and two positions; got {function!r}.")
    traced, captured, result = trace(function, jnp.float32, jnp.int32, jnp.int32)
    if not jnp.issubdtype(getattr(result, "dtype", jnp.bool_), jnp.floating) or result.shape != ():
        raise ValueError(f"`function` must return one floating-point score; got {result}.")
    wide = None
    if jnp.result_type(float) == jnp.float64:  # float64 is enabled
        wide, others, _ = trace(function, jnp.float64, jnp.int32, jnp.int32)
        assert [jnp.shape(one) for one in others] == [jnp.shape(one) for one in captured]
    return Function(traced, wide, captured)

"""A factor on the scores."""

import jax.numpy as jnp

from ..foundation.pieces import number, piece
from .arguments import Numbers, parameter, set_field
from .base import Score


@piece
class Scale(Score):
    """factor * score; a score of -inf (a pair that is out) stays -inf, whatever the factor.

    Args:
        factor: a number, or a floating-point array `[batch..., head]`, which is then learned like any other.

    Raises:
        ValueError: `factor` is not a finite floating-point number or array.

    >>> import jax.numpy as jnp
    >>> from jattn import scores
    >>> print(scores.Scale(2.0).modify(jnp.array([1.0, -jnp.inf]), jnp.array(0), jnp.arange(2)))
    [  2. -inf]
    """

    factor: Numbers = number("head")
    finite_at_zero = True

    def __post_init__(self):
        set_field(self, "factor", parameter("factor", self.factor))

    def modify(self, scores, query, key):
        del query, key
        factor = self.factor if isinstance(self.factor, (int, float)) else self.factor.astype(scores.dtype)
        out = jnp.isneginf(scores)  # kept out of the product: its gradient in the factor would be 0 * inf
        return jnp.where(out, scores, jnp.where(out, 0, scores) * factor)

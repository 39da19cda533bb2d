"""A factor on the scores."""

import jax.numpy as jnp

from ..foundation.fields import Numbers, parameter, set_field
from ..foundation.pieces import number, piece
from .base import Score


@piece
class Scale(Score):
    """factor * score. A score of -inf (an excluded pair) stays -inf for any factor.

    Args:
        factor: a number, or a floating-point array `[batch..., heads]`, which is differentiable.

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
        excluded = jnp.isneginf(scores)  # multiplied by 0 instead: the gradient of the factor would be 0 * inf
        return jnp.where(excluded, scores, jnp.where(excluded, 0, scores) * factor)

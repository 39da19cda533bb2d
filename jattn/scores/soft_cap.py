"""A soft cap, which squashes scores into an open interval."""

import jax
import jax.numpy as jnp

from ..foundation.fields import Numbers, parameter, set_field
from ..foundation.pieces import number, piece
from .base import Score

SATURATED = 30.0  # tanh of more than this is exactly 1, even in float64


@piece
class SoftCap(Score):
    """cap * tanh(score / cap), between -cap and cap (Gemma 2, arXiv:2408.00118); derivative 1 - tanh²(score / cap).

    The mask is applied later, so masked pairs stay masked. The -inf of an earlier `Bias` becomes -cap.

    Args:
        cap: a number above 0, or a floating-point array `[batch..., heads]`.

    Raises:
        ValueError: `cap` is not above 0.

    >>> import jax.numpy as jnp
    >>> from jattn import scores
    >>> print(scores.SoftCap(2.0).modify(jnp.array([0.0, 1.0, 100.0]), jnp.array(0), jnp.arange(3)))
    [0.         0.92423433 2.        ]
    """

    cap: Numbers = number("head")
    finite_at_zero = True

    def __post_init__(self):
        set_field(self, "cap", parameter("cap", self.cap, above=0))

    def modify(self, scores, query, key):
        del query, key
        if isinstance(self.cap, (int, float)):
            return self.cap * jnp.tanh(scores * (1 / self.cap))
        cap = self.cap.astype(scores.dtype)
        # Clip where tanh is flat, so that the gradient of the cap is not 0 * inf where a score is infinite.
        limit = SATURATED * jax.lax.stop_gradient(cap)
        return cap * jnp.tanh(jnp.clip(scores, -limit, limit) / cap)

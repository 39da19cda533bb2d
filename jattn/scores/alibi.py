"""ALiBi: a penalty proportional to distance, with one slope per head."""

import math
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.fields import floats, set_field
from ..foundation.pieces import array, piece
from .base import Score


@piece
class ALiBi(Score):
    """score - slope * |query position - key position| (Press et al. 2022, arXiv:2108.12409).

    The paper is causal. For keys after the query, the absolute value gives the usual symmetric form.

    Args:
        slopes: floating-point `[batch..., heads]`; learnable. `ALiBi.standard(heads)` has the paper's.

    Raises:
        ValueError: `slopes` is not a floating-point array with a head axis.

    >>> from jattn import scores
    >>> print(scores.ALiBi.standard(8).slopes)
    [0.5        0.25       0.125      0.0625     0.03125    0.015625
     0.0078125  0.00390625]
    """

    slopes: jax.Array | np.ndarray = array("head")
    finite_at_zero = True

    def __post_init__(self):
        set_field(self, "slopes", floats("slopes", self.slopes, ("head",), remedy="One head still needs its axis."))

    @classmethod
    def standard(cls, heads: int) -> Self:
        """The paper's slopes, 2^(-8i/n) for i = 1..n heads.

        If n is not a power of two, they follow the authors' code: the slopes of the next lower power of two, then every
        other slope of the next higher one.

        Raises:
            ValueError: `heads` is not a positive integer.
        """
        if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1:
            raise ValueError(f"`heads` must be a positive integer, the number of query heads; got {heads!r}.")
        below = 2 ** int(math.log2(heads))

        def geometric(count):
            return [2.0 ** (-8.0 * i / count) for i in range(1, count + 1)]

        slopes = geometric(below) + geometric(2 * below)[0::2][: heads - below]
        return cls(np.asarray(slopes, np.float32))

    def modify(self, scores, query, key):
        return scores - self.slopes.astype(scores.dtype) * jnp.abs(query - key).astype(scores.dtype)

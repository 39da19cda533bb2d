"""A Gaussian around a center that each query has, as the score of local-p attention."""

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.fields import Numbers, floats, parameter, set_field
from ..foundation.pieces import array, number, piece
from .base import Score


@piece
class GaussianWindow(Score):
    """score - (k - centers_i)² / (2 σ²), σ = distance / 2: the weight times a Gaussian, if it is not renormalized.

    Args:
        centers: floating-point `[batch..., head, query]`, or `[query]`; differentiated.
        distance: a number above 0, or a floating-point array `[batch..., head]`; differentiated.

    Raises:
        ValueError: as `Near`.

    >>> import numpy as np, jax.numpy as jnp
    >>> bell = GaussianWindow(np.zeros((1, 1), np.float32), 2.0)
    >>> print(bell.modify(jnp.zeros((1, 1, 3)), jnp.zeros((1, 1, 1), int), jnp.arange(3)))
    [[[ 0.  -0.5 -2. ]]]
    """

    centers: jax.Array | np.ndarray = array("head", "query")
    distance: Numbers = number("head")
    finite_at_zero = True

    def __post_init__(self):
        set_field(self, "centers", floats("centers", self.centers, ("head", "query"), shared=("head",)))
        set_field(self, "distance", parameter("distance", self.distance, above=0))

    def modify(self, scores, query, key):
        del query
        distance = jnp.where(self.distance > 0, self.distance, 1).astype(scores.dtype)  # `Near` has nothing within 0
        centers = jnp.where(jnp.isfinite(self.centers), self.centers, 0)  # `Near` has nothing around NaN
        away = (key.astype(scores.dtype) - centers.astype(scores.dtype)) / distance
        return scores - 2 * away * away

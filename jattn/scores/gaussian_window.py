"""A Gaussian around a center that each query has, the score of local-p attention."""

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.fields import Numbers, floats, parameter, set_field
from ..foundation.pieces import array, number, piece
from .base import Score


@piece
class GaussianWindow(Score):
    """score - (k - centers_i)² / (2 σ²) with σ = distance / 2 (Luong et al. 2015, arXiv:1508.04025, local-p).

    In the exponent of a softmax this multiplies the weights by a Gaussian before they are normalized. Luong et al.
    multiply after the softmax and do not renormalize.

    Args:
        centers: floating-point `[q_len]`, or `[batch..., heads, q_len]`; differentiated.
        distance: a number above 0, or a floating-point array `[batch..., heads]`; differentiated.

    Raises:
        ValueError: as for `jattn.masks.Near`.

    >>> import numpy as np, jax.numpy as jnp
    >>> window = GaussianWindow(np.zeros((1, 1), np.float32), 2.0)
    >>> print(window.modify(jnp.zeros((1, 1, 3)), jnp.zeros((1, 1, 1), int), jnp.arange(3)))
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
        distance = jnp.where(self.distance > 0, self.distance, 1).astype(
            scores.dtype
        )  # a distance of 0: `Near` allows no key
        centers = jnp.where(jnp.isfinite(self.centers), self.centers, 0)  # `Near` allows no key around NaN
        away = (key.astype(scores.dtype) - centers.astype(scores.dtype)) / distance
        return scores - 2 * away * away

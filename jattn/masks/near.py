"""Keys near a center that each query has, such as a position that it predicts."""

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.fields import Numbers, floats, parameter, set_field
from ..foundation.numerics import accumulation_dtype
from ..foundation.pieces import array, number, piece
from .base import Mask


@piece
class Near(Mask):
    """Keys at most `distance` from the query's own center: `|k - centers_i| <= distance`.

    Centers ride on the queries, whatever these's positions. Tiles out of reach are skipped, at run time where the
    centers are computed. It has no gradient.

    Args:
        centers: floating-point `[batch..., head, query]`, or `[query]`.
        distance: a number above 0, or a floating-point array `[batch..., head]`.

    Raises:
        ValueError: other dtypes or too few axes; a distance that is not above 0.

    >>> import numpy as np
    >>> Near(np.float32([1.5, 7.0]), 2.0).centers.shape
    (1, 2)
    """

    centers: jax.Array | np.ndarray = array("head", "query")
    distance: Numbers = number("head")

    def __post_init__(self):
        set_field(self, "centers", floats("centers", self.centers, ("head", "query"), shared=("head",)))
        set_field(self, "distance", parameter("distance", self.distance, above=0))

    def allows(self, query, key):
        del query
        away = key.astype(accumulation_dtype(self.centers)) - self.centers  # bfloat16 has no 257
        distance = jax.lax.stop_gradient(self.distance)
        return (jnp.abs(jax.lax.stop_gradient(away)) <= distance) & (distance > 0)

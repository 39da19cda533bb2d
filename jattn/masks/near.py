"""Keys near a center that each query has, such as a predicted position."""

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.fields import Numbers, floats, parameter, set_field
from ..foundation.numerics import accumulation_dtype
from ..foundation.pieces import array, number, piece
from .base import Mask


@piece
class Near(Mask):
    """Keys within `distance` of the query's own center: `|k - centers_i| <= distance`.

    Centers belong to the queries of the call, regardless of the query positions. Tiles out of reach are skipped, at run
    time if the centers are computed. The mask has no gradient; see `jattn.scores.GaussianWindow` for a score that has.

    Args:
        centers: floating-point `[q_len]`, or `[batch..., heads, q_len]`.
        distance: a number above 0, or a floating-point array `[batch..., heads]`.

    Raises:
        ValueError: an argument is not floating-point or has too few axes, or `distance` is not above 0.

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
        away = key.astype(accumulation_dtype(self.centers)) - self.centers  # bfloat16 cannot represent 257
        distance = jax.lax.stop_gradient(self.distance)
        return (jnp.abs(jax.lax.stop_gradient(away)) <= distance) & (distance > 0)

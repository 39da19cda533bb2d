"""T5's relative position bias: one learned number per bucket of distances."""

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.fields import floats, set_field
from ..foundation.pieces import array, piece
from .base import Score
from .look_up import check_coordinates, distances_of, look_up


@piece
class RelativeBuckets(Score):
    """score + table[bucket(key position - query position), head] (T5; Raffel et al. 2020, arXiv:1910.10683).

    Let m be the number of buckets per direction and n the distance. Distances below m/2 have a bucket each. Larger ones
    share the remaining buckets logarithmically: m/2 + floor(m/2 * log(2n/m) / log(2 max_distance/m)), at most m - 1. If
    bidirectional, the second half of the table is for keys after the query; otherwise such keys are in bucket 0. Bucket
    boundaries are computed in exact integer arithmetic. T5 does not scale its scores: combine with `similarity=Dot()`.

    Args:
        table: floating-point `[batch..., buckets, heads]`.
        bidirectional: whether keys after the query have their own buckets.
        max_distance: all larger distances share the last bucket.
        query_coordinates: numbers `[batch..., q_len]` whose differences replace those of positions, such as places on a
            page. For two axes, pass two scores, one for x and one for y (LayoutLMv2, arXiv:2012.14740; UDOP,
            arXiv:2212.02623). Coordinates get no gradient, since buckets are piecewise constant.
        key_coordinates: numbers `[batch..., kv_len]`; by default `query_coordinates`, for self-attention.
        scale: a Python number. Differences of coordinates are multiplied by it and then rounded toward 0.

    Raises:
        ValueError: `table` has too few buckets or an odd number per direction; `max_distance` is so small that every
            distance has its own bucket; coordinates are not numbers; or `scale` is given without coordinates.

    >>> import jax, jattn
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (10, 2, 4)) for i in range(3))
    >>> bias = jattn.scores.RelativeBuckets(jax.random.normal(jax.random.key(3), (32, 2)))
    >>> jattn.attention(q, k, v, similarity=jattn.similarities.Dot(), scores=bias).shape
    (10, 2, 4)
    """

    table: jax.Array | np.ndarray = array("bucket", "head")
    bidirectional: bool = True
    max_distance: int = 128
    query_coordinates: jax.Array | np.ndarray | None = array("query", default=None)
    key_coordinates: jax.Array | np.ndarray | None = array("key", default=None)
    scale: float = 1.0
    finite_at_zero = True

    def __post_init__(self):
        set_field(self, "table", floats("table", self.table, ("bucket", "head")))
        if not isinstance(self.bidirectional, bool):
            raise ValueError(f"`bidirectional` must be True or False; got {self.bidirectional!r}.")
        rows = self.table.shape[-2]
        directions = 2 if self.bidirectional else 1
        if rows < 2 * directions or rows % (2 * directions):
            raise ValueError(
                f"`table` must have a multiple of {2 * directions} rows (buckets) with bidirectional="
                f"{self.bidirectional}; got {rows} in shape {tuple(self.table.shape)} [batch..., bucket, head]."
            )
        exact = rows // directions // 2
        if not isinstance(self.max_distance, int) or isinstance(self.max_distance, bool) or self.max_distance <= exact:
            raise ValueError(
                f"`max_distance` must be an integer above {exact}, the distances that {rows} buckets hold one by one; "
                f"got {self.max_distance!r}."
            )
        check_coordinates(self, floating=True)
        if not isinstance(self.scale, (int, float)) or isinstance(self.scale, bool) or not 0 < self.scale < np.inf:
            raise ValueError(f"`scale` must be a finite number above 0; got {self.scale!r}.")
        if self.scale != 1 and self.query_coordinates is None:
            raise ValueError(f"`scale` is that of coordinates; got {self.scale!r} without `query_coordinates`.")

    def modify(self, scores, query, key):
        distance = distances_of(self, query, key)
        if self.scale != 1 or not jnp.issubdtype(distance.dtype, jnp.integer):
            distance = jnp.trunc(distance * self.scale).astype(jnp.int32)
        buckets = relative_bucket(distance, self.table.shape[-1], self.bidirectional, self.max_distance)
        return scores + look_up(self.table.astype(scores.dtype), buckets)  # of [batch..., head, 1, 1, bucket]


def relative_bucket(relative: jax.Array, buckets: int, bidirectional: bool, max_distance: int) -> jax.Array:
    """T5's bucket of `relative` = key position - query position, elementwise."""
    first = jnp.zeros((), jnp.int32)
    if bidirectional:
        buckets //= 2
        first = jnp.where(relative > 0, buckets, 0)
        distance = jnp.abs(relative)
    else:
        distance = jnp.maximum(-relative, 0)
    bucket = jnp.minimum(distance, buckets // 2)
    for bound in _bounds(buckets, max_distance):
        bucket = bucket + (distance >= bound)
    return first + bucket


def _bounds(buckets: int, max_distance: int) -> list[int]:
    """The lower bounds of the logarithmic buckets after the first: the least n with n^r e^i >= max_distance^i e^r.

    Here e is the number of exact buckets, r the number of logarithmic ones, and i = 1..r - 1.
    """
    exact, rest = buckets // 2, buckets - buckets // 2
    bounds, distance = [], exact
    for i in range(1, rest):
        while distance**rest * exact**i < max_distance**i * exact**rest:
            distance += 1
        bounds.append(distance)
    return bounds

"""T5's relative bias: one learned number for each bucket of relative positions."""

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.pieces import array, piece
from .arguments import floats, set_field
from .base import Score
from .look_up import check_coordinates, distances_of, look_up


@piece
class RelativeBuckets(Score):
    """score + table[bucket(key position - query position), head] (Raffel et al. 2020, arXiv:1910.10683).

    With n the distance and m buckets for a direction: the first m/2 distances have a bucket each, the others share
    the rest logarithmically, bucket m/2 + floor(m/2 * log(2n/m) / log(2 max_distance/m)), at most m - 1. Both
    directions halve the table, its second half for keys after the query; with one direction keys after the query are
    in bucket 0. The bounds are computed in exact integers; T5's scores have no 1/√qk_dim (`similarity=Dot()`).

    Args:
        table: floating-point `[batch..., bucket, head]`; its rows are the buckets.
        bidirectional: whether keys after the query have buckets of their own.
        max_distance: from there on all is one bucket.
        query_coordinates: numbers `[batch..., q_len]` whose distances are taken in place of those of positions: where
            tokens are on a page. Layouts of two axes are two scores, one for x and one for y (LayoutLMv2,
            arXiv:2012.14740; UDOP, arXiv:2212.02623). Gradients do not flow to coordinates, as buckets are steps.
        key_coordinates: numbers `[batch..., kv_len]`; by default those of the queries, for self-attention.
        scale: a Python number that distances of coordinates are multiplied by before they are rounded towards 0.

    Raises:
        ValueError: too few or an odd number of buckets, or a `max_distance` that they cover one by one; coordinates
            that are no numbers, or a `scale` without them.

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
    """The least distances of the logarithmic buckets but the first, the least n with n^r e^i >= max_distance^i e^r."""
    exact, rest = buckets // 2, buckets - buckets // 2
    bounds, distance = [], exact
    for i in range(1, rest):
        while distance**rest * exact**i < max_distance**i * exact**rest:
            distance += 1
        bounds.append(distance)
    return bounds

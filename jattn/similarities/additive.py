"""Additive attention: a one-layer network scores each pair."""

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.fields import floats, set_field
from ..foundation.numerics import accumulation_dtype
from ..foundation.pieces import array, piece
from .bilinear import check_weight, project
from .dot import Prepared, Similarity
from .finite import finite_query

WEIGHT = ("head", "dim", "feature")
VECTOR = ("head", "feature")


@piece
class Additive(Similarity):
    """vᵀ tanh(W q + U k + b) (Bahdanau et al. 2015, arXiv:1409.0473). Luong's `concat` has [W, U] as one matrix.

    This score is not a dot product. Wq + b and Uk are computed once; the hidden features of the pairs are computed tile
    by tile, so `tiled` holds those of one tile in memory, `pallas_tpu` one feature at a time, and `reference` those of
    all pairs. Computed in float32 (float64 for float64 inputs).

    Args:
        query_weight: W, floating-point `[dim, features]`, or `[batch..., heads, dim, features]` with one per query
            head.
        key_weight: U, likewise. One per head requires as many key heads as query heads.
        vector: v, `[features]` or `[batch..., heads, features]`.
        bias: b, like `vector`, or None.

    Raises:
        ValueError: an array is not floating-point, or has too few axes; the sizes do not match each other, or those of
            the query and key.

    >>> import jax, jattn
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (10, 2, 4)) for i in range(3))
    >>> w, u, a = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(4, 8), (4, 8), (8,)]))
    >>> jattn.attention(q, k, v, similarity=jattn.similarities.Additive(w, u, a)).shape
    (10, 2, 4)
    """

    query_weight: jax.Array | np.ndarray = array(*WEIGHT)
    key_weight: jax.Array | np.ndarray = array(*WEIGHT)
    vector: jax.Array | np.ndarray = array(*VECTOR)
    bias: jax.Array | np.ndarray | None = array(*VECTOR, default=None)
    is_dot = False
    finite = True

    def __post_init__(self):
        for name, axes in (("query_weight", WEIGHT), ("key_weight", WEIGHT), ("vector", VECTOR), ("bias", VECTOR)):
            if name != "bias" or self.bias is not None:
                set_field(self, name, floats(name, getattr(self, name), axes, shared=("head",)))
        features = {
            name: getattr(self, name).shape[-1]
            for name in ("query_weight", "key_weight", "vector", "bias")
            if getattr(self, name) is not None
        }
        if len(set(features.values())) > 1:
            raise ValueError(
                f"`query_weight`, `key_weight`, `vector` and `bias` must have equally many features; got {features}."
            )

    def prepare(self, query, key):
        check_weight("query_weight", self.query_weight, "query", query)
        check_weight("key_weight", self.key_weight, "key", key)
        query, poison = finite_query(query)
        projected = project(query, self.query_weight)
        if self.bias is not None:
            projected = projected + self.bias[..., None, :, :].astype(projected.dtype)
        return Prepared(projected, project(key, self.key_weight), scores=(poison,))

    def pair(self, query, key):
        *batch, q_heads, q_len, features = query.shape
        kv_heads, k_len = key.shape[-3:-1]
        groups = (kv_heads, q_heads // kv_heads)
        dtype = accumulation_dtype(query, key)
        vector = self.vector.astype(dtype)  # aligned: [batch..., head, 1, 1, feature]
        split = groups if vector.shape[-4] == q_heads else (1, 1)
        vector = vector.reshape(*vector.shape[:-4], *split, 1, 1, features)
        hidden = jnp.tanh(
            query.astype(dtype).reshape(*batch, *groups, q_len, 1, features) + key.astype(dtype)[..., None, None, :, :]
        )
        return (hidden * vector).sum(-1).reshape(*batch, q_heads, q_len, k_len)

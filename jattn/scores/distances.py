"""Relative position logits: a number for each head, query and distance, added to the score."""

from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arrays import describe, dtype_of
from ..foundation.fields import floats, set_field
from ..foundation.numerics import accumulation_dtype
from ..foundation.pieces import array, piece
from .base import Score
from .look_up import check_coordinates, distances_of, look_up


@piece
class RelativeLogits(Score):
    """score + logits[head, query, r], with r = clip(key position - query position - first, 0, distances - 1).

    The logits are a learned table (with a query axis of size 1), or are computed from the query by `of_query`:

    - Shaw et al. 2018 (arXiv:1803.02155), q_i·a_r with distances clipped to ±n:
      `RelativeLogits.of_query(query, vectors [2n + 1, dim], first=-n)`. Inside a layer, which projects its own query,
      use `jattn.similarities.RelativeDot`.
    - Transformer-XL (arXiv:1901.02860) and the Conformer of wav2vec 2.0, (q_i + v)·W_r R_r:
      `RelativeLogits.of_query(query + v, projected [distances, heads, dim], first)`, ordered by key - query. For
      sinusoids, `jattn.variants.memory.relative_attention` needs no storage per distance.
    - Along one axis of an image (arXiv:1904.09925; MViTv2 and SAM have one for rows and one for columns): pass
      `query_coordinates` and `key_coordinates`.

    The logits take heads x q_len x distances numbers; nothing of size q_len x kv_len is built. Gradients flow to the
    logits and to what they were computed from. Logits are indexed by the queries of the call, and distances are
    those of positions.

    Args:
        logits: floating-point `[batch..., heads or 1, q_len or 1, distances]`.
        first: key position - query position of the first logit, a Python int; -(distances - 1) / 2 for a symmetric
            table. Pairs further apart use the first or last logit.
        query_coordinates: integers `[batch..., q_len]` to use in place of positions.
        key_coordinates: integers `[batch..., kv_len]`; by default `query_coordinates`, for self-attention.

    Raises:
        ValueError: `logits` is not a floating-point array of at least three axes, or has no distances; `first` or the
            coordinates are not integers.

    >>> import jax, jattn
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (10, 2, 4)) for i in range(3))
    >>> table = jax.random.normal(jax.random.key(3), (2, 1, 7))  # distances -3, ..., 3
    >>> jattn.attention(q, k, v, scores=jattn.scores.RelativeLogits(table, first=-3)).shape
    (10, 2, 4)
    """

    logits: jax.Array | np.ndarray = array("head", "query", "distance")
    first: int
    query_coordinates: jax.Array | np.ndarray | None = array("query", default=None)
    key_coordinates: jax.Array | np.ndarray | None = array("key", default=None)
    finite_at_zero = True

    def __post_init__(self):
        set_field(self, "logits", floats("logits", self.logits, ("head", "query", "distance")))
        if not self.logits.shape[-1]:
            raise ValueError(f"`logits` must have at least one distance; got shape {tuple(self.logits.shape)}.")
        if isinstance(self.first, np.integer):
            set_field(self, "first", int(self.first))
        if not isinstance(self.first, int) or isinstance(self.first, bool):
            raise ValueError(
                f"`first` must be a Python integer, the key - query of the first number; got {self.first!r}."
            )
        check_coordinates(self, floating=False)

    @classmethod
    def of_query(
        cls,
        query: jax.Array,
        distances: jax.Array | np.ndarray,
        first: int,
        *,
        scale: float | None = None,
        query_coordinates: Any = None,
        key_coordinates: Any = None,
    ) -> Self:
        """logits[h, i, r] = scale * query[i, h] · distances[r], in float32 (float64 for float64 inputs).

        Args:
            query: `[..., q_len, q_heads, dim]`.
            distances: one vector per distance, `[distances, dim]` for all heads, or `[distances, q_heads, dim]`.
            first: as in the constructor.
            scale: by default 1/√dim, the scale of the scores that the logits are added to.
            query_coordinates: as in the constructor.
            key_coordinates: as in the constructor.

        Raises:
            ValueError: the shapes do not match.

        >>> import jax, jattn
        >>> q, k, v, a = (jax.random.normal(jax.random.key(i), (10, 2, 4)) for i in range(4))
        >>> shaw = jattn.scores.RelativeLogits.of_query(q, a[:7, 0], first=-3)
        >>> shaw.logits.shape, jattn.attention(q, k, v, scores=shaw).shape
        ((2, 10, 7), (10, 2, 4))
        """
        for name, value in (("query", query), ("distances", distances)):
            dtype = dtype_of(value)
            if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
                raise ValueError(f"`{name}` must be a floating-point array; got {describe(value)}.")
        vectors: Any = distances
        shape, heads = tuple(vectors.shape), tuple(query.shape[-2:-1])
        if query.ndim < 3 or len(shape) not in (2, 3) or shape[-1] != query.shape[-1] or shape[1:-1] not in ((), heads):
            raise ValueError(
                "`query` must have shape [..., q_len, q_heads, dim] and `distances` [distances, dim] or [distances, "
                f"q_heads, dim]; got {tuple(query.shape)} and {shape}."
            )
        dtype = accumulation_dtype(query, vectors)
        wide = query.astype(dtype) * (query.shape[-1] ** -0.5 if scale is None else scale)
        spec = "...qhd,rd->...hqr" if len(shape) == 2 else "...qhd,rhd->...hqr"
        logits = jnp.einsum(spec, wide, jnp.asarray(vectors, dtype))
        return cls(logits, first, query_coordinates, key_coordinates)

    def modify(self, scores, query, key):
        place = jnp.clip(distances_of(self, query, key) - self.first, 0, self.logits.shape[-1] - 1)
        return scores + look_up(self.logits.astype(scores.dtype), place)

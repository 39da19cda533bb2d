"""Relative position representations: dot products with the key and with a vector per distance."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.fields import floats, set_field
from ..foundation.numerics import accumulation_dtype
from ..foundation.pieces import array, piece
from ..scores.distances import RelativeLogits
from .dot import Prepared, Similarity
from .finite import finite_query


@piece
class RelativeDot(Similarity):
    """((q_i + u)·k_j + (q_i + v)·a_r) * scale, with r = clip(key position - query position - first, 0, distances - 1).

    Without the biases u and v this is Shaw et al. 2018 (arXiv:1803.02155). With them it is Transformer-XL (Dai et al.
    2019, arXiv:1901.02860), where a_r = W_r R_r, and Conformer, of speech models, has the same (Gulati et al. 2020,
    arXiv:2005.08100). As a piece it fits into any layer, which can train the vectors:
    `MultiHeadAttention(..., similarity=RelativeDot(table, first=-n), learned="similarity")`.

    The products with a_r are computed once, as `RelativeLogits` with heads x q_len x distances numbers, in float32
    (float64 for float64 inputs). The rest is a dot product.

    Args:
        distances: a, floating-point `[distances, dim]` for all heads, or `[batch..., heads, distances, dim]`.
        first: key position - query position of the first vector, a Python int; -n for the distances -n to n. Pairs
            further apart use the first or last vector.
        content_bias: u, floating-point `[batch..., heads, dim]`, or None.
        position_bias: v, likewise.
        scale: a Python number; by default 1/√dim.

    Raises:
        ValueError: an array is not floating-point, has too few axes, or does not match the query; `first` or `scale` is
            not a number.

    >>> import jax, jattn
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (10, 2, 4)) for i in range(3))
    >>> shaw = jattn.similarities.RelativeDot(jax.random.normal(jax.random.key(3), (7, 4)), first=-3)
    >>> jattn.attention(q, k, v, similarity=shaw).shape
    (10, 2, 4)
    """

    distances: jax.Array | np.ndarray = array("head", "distance", "dim")
    first: int
    content_bias: jax.Array | np.ndarray | None = array("head", "dim", default=None)
    position_bias: jax.Array | np.ndarray | None = array("head", "dim", default=None)
    scale: float | None = None
    rewrites_key = False

    def __post_init__(self):
        set_field(self, "distances", floats("distances", self.distances, ("head", "distance", "dim"), shared=("head",)))
        for name in ("content_bias", "position_bias"):
            if getattr(self, name) is not None:
                set_field(self, name, floats(name, getattr(self, name), ("head", "dim")))
        if self.scale is not None and not (type(self.scale) in (int, float) and math.isfinite(self.scale)):
            raise ValueError(f"`scale` must be a finite Python number, or None for 1/√dim; got {self.scale!r}.")
        # Let RelativeLogits check `first` and the number of distances.
        RelativeLogits(np.zeros((1, 1, self.distances.shape[-2]), np.float32), self.first)

    def prepare(self, query, key):
        heads, dim = query.shape[-2:]
        for name, place in (("distances", -3), ("content_bias", -2), ("position_bias", -2)):
            value = getattr(self, name)
            if value is not None and (value.shape[-1] != dim or value.shape[place] not in (1, heads)):
                raise ValueError(
                    f"`{name}` must have the dim of `query`, and its heads or 1; got shape {tuple(value.shape)} and "
                    f"query {query.shape}."
                )
        query, poison = finite_query(query)
        wide = query.astype(accumulation_dtype(query, key))
        scale = dim**-0.5 if self.scale is None else float(self.scale)

        def plus(bias):
            return wide if bias is None else wide + bias.astype(wide.dtype)[..., None, :, :]

        vectors = jnp.asarray(self.distances, wide.dtype)
        vectors = jnp.broadcast_to(vectors, (*vectors.shape[:-3], heads, *vectors.shape[-2:]))
        logits = jnp.einsum("...qhd,...hrd->...hqr", plus(self.position_bias) * scale, vectors)
        content = query if self.content_bias is None else plus(self.content_bias)
        return Prepared(content, key, scale, (RelativeLogits(logits, self.first), poison))

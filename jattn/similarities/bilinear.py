"""Bilinear forms of a query and a key."""

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.fields import Numbers, floats, parameter, set_field
from ..foundation.numerics import accumulation_dtype
from ..foundation.pieces import array, number, piece
from ..scores.bias import Shift
from .dot import Prepared, Similarity
from .finite import finite_query


@piece
class Bilinear(Similarity):
    """qᵀ W k + b, the `general` score of Luong et al. (2015, arXiv:1508.04025). W = I gives the dot product.

    Runs as a dot product: the query is replaced by Wᵀq once, in float32 (float64 for float64 inputs), and the key is
    unchanged. There is no 1/√qk_dim. The bias is the same for all keys, so it cancels in a softmax; it matters for a
    sigmoid, a soft cap or a sink.

    Args:
        weight: W, floating-point `[q_dim, k_dim]`, or `[batch..., heads, q_dim, k_dim]` with one per query head.
        bias: b: None, a number, or a floating-point array `[batch..., heads]`.

    Raises:
        ValueError: `weight` or `bias` is not floating-point; `weight` does not match the feature sizes of the query and
            key, or the query heads.

    >>> import jax, jattn
    >>> q, k, v, w = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(10, 2, 4)] * 3 + [(4, 4)]))
    >>> jattn.attention(q, k, v, similarity=jattn.similarities.Bilinear(w)).shape
    (10, 2, 4)
    """

    weight: jax.Array | np.ndarray = array("head", "q_dim", "k_dim")
    bias: Numbers | None = number("head", default=None)
    rewrites_key = False

    def __post_init__(self):
        set_field(self, "weight", floats("weight", self.weight, ("head", "q_dim", "k_dim"), shared=("head",)))
        if self.bias is not None:
            set_field(self, "bias", parameter("bias", self.bias))

    def prepare(self, query, key):
        check_weight("weight", self.weight, "query", query, "key", key)
        query, poison = finite_query(query)
        scores = () if self.bias is None else (Shift(self.bias),)
        return Prepared(project(query, self.weight), key, scores=(*scores, poison))


@piece
class SharedBilinear(Similarity):
    """(Wᵀq)·(Wᵀk) = qᵀ W Wᵀ k: one projection for both, so the form is symmetric and positive semidefinite.

    Runs as a dot product: the query is replaced by W Wᵀ q once, in float32 (float64 for float64 inputs), and the key is
    unchanged. There is no 1/√qk_dim.

    Args:
        weight: W, floating-point `[dim, rank]`, or `[batch..., heads, dim, rank]` with one per query head.

    Raises:
        ValueError: `weight` is not floating-point, or does not match the feature size or the heads of the query.

    >>> import jax, jattn
    >>> q, k, v, w = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(10, 2, 4)] * 3 + [(4, 3)]))
    >>> jattn.attention(q, k, v, similarity=jattn.similarities.SharedBilinear(w)).shape
    (10, 2, 4)
    """

    weight: jax.Array | np.ndarray = array("head", "dim", "rank")
    rewrites_key = False

    def __post_init__(self):
        set_field(self, "weight", floats("weight", self.weight, ("head", "dim", "rank"), shared=("head",)))

    def prepare(self, query, key):
        check_weight("weight", self.weight, "query", query)
        query, poison = finite_query(query)
        projected = project(project(query, self.weight), jnp.swapaxes(self.weight, -1, -2))
        return Prepared(projected, key, scores=(poison,))


def project(vectors: jax.Array, weight: jax.Array | np.ndarray) -> jax.Array:
    """Multiply `[batch..., length, heads, d]` by `[batch..., heads, d, e]`: `[batch..., length, heads, e]` in float32.

    Raises:
        ValueError: the weight has neither one head nor the heads of `vectors`.
    """
    dtype = accumulation_dtype(vectors)
    weight = jnp.asarray(weight, dtype)
    if weight.shape[-3] == 1:
        return jnp.einsum("...qhd,...de->...qhe", vectors.astype(dtype), weight[..., 0, :, :])
    if weight.shape[-3] != vectors.shape[-2]:
        raise ValueError(
            f"`weight` of shape {weight.shape} [batch..., head, dim, ...] must have 1 head or the {vectors.shape[-2]} "
            f"of the array it multiplies, {vectors.shape}."
        )
    return jnp.einsum("...qhd,...hde->...qhe", vectors.astype(dtype), weight)


def check_weight(name: str, weight, left: str, left_array, right: str = "", right_array=None) -> None:
    """Check that the last two axes of a weight are the feature sizes of what it multiplies.

    Raises:
        ValueError: they are not.
    """
    for axis, side, vectors in ((-2, left, left_array), (-1, right, right_array)):
        if vectors is not None and weight.shape[axis] != vectors.shape[-1]:
            raise ValueError(
                f"`{name}` of shape {tuple(weight.shape)} has size {weight.shape[axis]} on axis {axis}, but `{side}` "
                f"of shape {vectors.shape} has {vectors.shape[-1]} features. They must be equal."
            )

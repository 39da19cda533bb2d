"""The Gaussian score: minus a squared distance."""

from typing import Any

import jax
import jax.numpy as jnp

from ..foundation.arrays import of_rank
from ..foundation.pieces import number, piece
from ..scores.arguments import Numbers, parameter, set_field
from ..scores.bias import Bias
from .base import Prepared, Similarity, accumulation_dtype
from .dot import static_or_score
from .finite import finite_query


@piece
class Gaussian(Similarity):
    """-gamma ‖q - k‖², whose softmax is Nadaraya-Watson regression with a Gaussian kernel, gamma = 1/(2σ²).

    Runs on the dot-product kernels, as 2 gamma q·k - gamma ‖k‖² - gamma ‖q‖². The last term is the same for all keys
    of a query and cancels in a softmax; it is kept so that the score is exact for a soft cap, a sigmoid, a sink and
    the lse. As the terms cancel for near vectors, the absolute error is that of gamma (‖q‖² + ‖k‖²) in float32:
    subtract a common mean from query and key if they are far from 0, which changes no distance.

    gamma = 0 is the mean of the values; unit-norm keys with gamma = 1/(2√qk_dim) are the scaled dot product; a large
    gamma approaches the nearest key, where the gradient is 0: to within gamma times the rounding of the output, as
    `tiled` takes the mean of the values off in sums of its own.

    Args:
        gamma: a number of at least 0, or a floating-point array `[batch..., head]` of such, one for each query head.

    Raises:
        ValueError: `gamma` is negative (as far as its values are known).

    >>> import jax, jattn
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (10, 2, 4)) for i in range(3))
    >>> jattn.attention(q, k, v, similarity=jattn.similarities.Gaussian(0.5)).shape
    (10, 2, 4)
    """

    gamma: Numbers = number("head")

    def __post_init__(self):
        set_field(self, "gamma", parameter("gamma", self.gamma, least=0))

    def prepare(self, query, key):
        gamma = factor = self.gamma
        if not isinstance(factor, (int, float)):
            factor = of_rank(factor.astype(accumulation_dtype(query, key))[..., None, None], query.ndim)
        query, broken = finite_query(query)
        far_query = penalty(factor, squared_norm(query)[..., :, None])
        per_head = jnp.repeat(squared_norm(key), query.shape[-2] // key.shape[-2], axis=-2)
        far_key = penalty(factor, per_head[..., None, :])
        scale, scores = static_or_score(2 * gamma)
        return Prepared(query, key, scale, (*scores, Bias(far_key), Bias(broken.values + far_query)))


def penalty(factor: Any, square: jax.Array) -> jax.Array:
    """-factor * square; -inf for a square that overflowed, so that its key, masked out, is not 0 * inf to gamma."""
    finite = jnp.isfinite(square)
    return jnp.where(finite, -factor * jnp.where(finite, square, 0), -jnp.inf)


def squared_norm(vectors: jax.Array) -> jax.Array:
    """`[batch..., length, heads, dim]` -> `[batch..., heads, length]`, in float32 (float64)."""
    vectors = vectors.astype(accumulation_dtype(vectors))
    return jnp.swapaxes((vectors * vectors).sum(-1), -1, -2)

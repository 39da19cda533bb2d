"""The Gaussian similarity: a negative squared distance."""

from typing import Any

import jax
import jax.numpy as jnp

from ..foundation.arrays import of_rank
from ..foundation.fields import Numbers, parameter, set_field
from ..foundation.numerics import accumulation_dtype
from ..foundation.pieces import number, piece
from ..scores.bias import Bias
from .dot import Prepared, Similarity, static_or_score
from .finite import finite_query


@piece
class Gaussian(Similarity):
    """-γ‖q - k‖². Its softmax is Nadaraya-Watson regression with a Gaussian kernel of variance σ² = 1/(2γ).

    Runs as a dot product: 2γ q·k - γ‖k‖² - γ‖q‖². The last term is the same for all keys of a query and cancels in a
    softmax; it is kept so that soft caps, sigmoids, sinks and the lse see the exact score. For vectors that are close
    together the terms nearly cancel, so the absolute error is that of γ(‖q‖² + ‖k‖²) in float32. If queries and keys
    are far from the origin, subtract a common mean from both, which changes no distance.

    With γ = 0 the output is the mean of the values. For keys of unit norm and γ = 1/(2√qk_dim), it is that of the
    scaled dot product. As γ grows, the output approaches the value of the nearest key, and gradients approach 0.
    Rounding then leaves an error of about γ times the rounding error of the output.

    Demonstrated in `examples/experiments/gaussian.py`.

    Args:
        gamma: γ, a number of at least 0, or a floating-point array `[batch..., heads]` with one per query head.

    Raises:
        ValueError: `gamma` is not a floating-point number or array, or is known to be negative or not finite.

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
        query, poison = finite_query(query)
        far_query = penalty(factor, squared_norm(query)[..., :, None])
        per_head = jnp.repeat(squared_norm(key), query.shape[-2] // key.shape[-2], axis=-2)
        far_key = penalty(factor, per_head[..., None, :])
        scale, scores = static_or_score(2 * gamma)
        return Prepared(query, key, scale, (*scores, Bias(far_key), Bias(poison.values + far_query)))


def penalty(factor: Any, square: jax.Array) -> jax.Array:
    """-factor * square, or -inf if the square overflowed (a masked key would give γ the gradient 0 * inf otherwise)."""
    finite = jnp.isfinite(square)
    return jnp.where(finite, -factor * jnp.where(finite, square, 0), -jnp.inf)


def squared_norm(vectors: jax.Array) -> jax.Array:
    """`[batch..., length, heads, dim]` -> `[batch..., heads, length]`, in float32 (float64)."""
    vectors = vectors.astype(accumulation_dtype(vectors))
    return jnp.swapaxes((vectors * vectors).sum(-1), -1, -2)

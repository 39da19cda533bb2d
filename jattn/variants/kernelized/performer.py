"""Random features of the softmax kernel (FAVOR+), and the orthogonal projections they use."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...foundation.arguments import check_choice, check_key, check_number, check_positive
from ...foundation.pieces import array, piece
from ...foundation.shapes import check_shapes
from .features import FeatureMap

KINDS = ("positive", "hyperbolic", "relu")


def orthogonal_projection(key: jax.Array, features: int, dim: int, *, dtype: Any = jnp.float32) -> jax.Array:
    """The rows of W, normal vectors of `dim` numbers, orthogonal within each block of `dim` rows.

    Each block is a Haar-distributed rotation (the Q of a normal matrix, times the signs of the diagonal of R: LAPACK's
    own Q is not Haar distributed), each row scaled by the norm of a normal vector (χ of `dim`). Each row by itself is a
    standard normal vector; together they have a lower variance than independent rows (arXiv:2009.14794).

    Args:
        key: a random key.
        features: rows.
        dim: columns.
        dtype: dtype of the result.

    Returns:
        `[features, dim]`.

    Raises:
        ValueError: a size is below 1; `key` is not a random key.

    >>> import jax
    >>> orthogonal_projection(jax.random.key(0), 100, 16).shape
    (100, 16)
    """
    check_key("key", key)
    check_positive(features=features, dim=dim)
    blocks = -(-features // dim)
    of_direction, of_norm = jax.random.split(key)
    q, r = jnp.linalg.qr(jax.random.normal(of_direction, (blocks, dim, dim), dtype))
    q = q * jnp.sign(jnp.diagonal(r, axis1=-2, axis2=-1))[..., None, :]
    norms = jnp.linalg.norm(jax.random.normal(of_norm, (features, dim), dtype), axis=-1)
    return q.reshape(blocks * dim, dim)[:features] * norms[:, None]


@piece
class RandomFeatures(FeatureMap):
    """FAVOR+: random features whose products estimate exp(q·k / √dim) without bias, or a ReLU kernel.

        positive     φ(x) = exp(W x' - |x'|²/2 - c) / √m                      x' = x / dim^¼
        hyperbolic   φ(x) = [exp(W x' ...), exp(-W x' ...)] / √(2m)
        relu         φ(x) = relu(W x') / √m                                   another kernel; no exponential

    Choromanski et al. 2021 (arXiv:2009.14794). The stabilizer c cancels in the normalized output. For queries it is the
    largest exponent among the features. For keys, `log_scale` returns the same per key, and `kernelized_attention`
    takes the maximum over positions, or in the causal form a running maximum over chunks. `epsilon` is added to each
    feature after the exponential, as in the authors' code, where it is 1e-6; the default, 0, leaves the estimate
    unbiased.

    Args:
        projection: W, `[m, dim]`, as in `orthogonal_projection`.
        kind: `"positive"`, `"hyperbolic"` or `"relu"`.
        epsilon: at least 0.

    Raises:
        ValueError: the kind is unknown; `epsilon` is negative; at the call, the projection has another dim.

    >>> import jax, jax.numpy as jnp
    >>> features = RandomFeatures(orthogonal_projection(jax.random.key(0), 64, 16))
    >>> features.query(jnp.ones((5, 2, 16)), None).shape
    (5, 2, 64)
    """

    projection: jax.Array | np.ndarray = array("feature", "dim")
    kind: str = "positive"
    epsilon: float = 0.0

    def __post_init__(self):
        check_choice("kind", self.kind, KINDS)
        check_number("epsilon", self.epsilon, least=0)
        check_shapes(projection=(self.projection, "features dim"))

    def query(self, x, positions):
        del positions
        return self._made(x)

    def log_scale(self, x):
        if self.kind == "relu":
            return None
        return jax.lax.stop_gradient(self.exponents(x).max(-1))

    def exponents(self, x: jax.Array) -> jax.Array:
        """The exponents before the stabilizer, `[..., m]` or `[..., 2m]`."""
        x, product = self._product(x)
        if self.kind == "hyperbolic":
            product = jnp.concatenate([product, -product], -1)
        return product - jnp.square(x).sum(-1, keepdims=True) / 2

    def _made(self, x: jax.Array) -> jax.Array:
        root = math.sqrt(self.projection.shape[0] * (2 if self.kind == "hyperbolic" else 1))
        if self.kind == "relu":
            return (jax.nn.relu(self._product(x)[1]) + self.epsilon) / root
        exponents = self.exponents(x)
        return (jnp.exp(exponents - jax.lax.stop_gradient(exponents.max(-1, keepdims=True))) + self.epsilon) / root

    def _product(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        dim = self.projection.shape[-1]
        if x.shape[-1] != dim:
            raise ValueError(f"`projection` must have the dim {x.shape[-1]} of queries and keys; got {dim}.")
        x = x * dim**-0.25
        return x, jnp.einsum("...d,md->...m", x, self.projection.astype(x.dtype))

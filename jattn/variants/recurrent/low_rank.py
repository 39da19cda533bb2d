"""Low-rank functions of a token, for gates and for how much of the previous token to mix in."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_positive
from ...layers.layer import OWN_AXES, Layer, bias, kernel


@dataclasses.dataclass(frozen=True)
class LowRank(Layer):
    """base + f(x W₁) W₂: GLA's gate, with f the identity, and RWKV-6's "lora", with f = tanh.

    Args:
        features: features of x.
        rank: the inner dimension of W₁ W₂.
        shape: shape of the result.
        base: the initial value of the base, which is learned.
        curved: whether f is tanh rather than the identity.

    Raises:
        ValueError: a size is below 1.

    >>> import jax
    >>> layer = LowRank(16, 4, (2, 8))
    >>> jax.jit(layer)(layer.init(jax.random.key(0)), jax.numpy.ones((10, 16))).shape
    (10, 2, 8)
    """

    own_axes = OWN_AXES

    features: int
    rank: int
    shape: tuple[int, ...]
    base: float = 0.0
    curved: bool = False

    def __post_init__(self):
        check_positive(features=self.features, rank=self.rank)

    def parameters(self) -> dict[str, Any]:
        """`down`, `up` and `bias`, the base."""
        return {
            "down": kernel(self.features, self.rank),
            "up": kernel(self.rank, *self.shape),
            "bias": bias(*self.shape, init=jax.nn.initializers.constant(self.base)),
        }

    def __call__(self, parameters: Mapping[str, Any], inputs: jax.Array) -> jax.Array:
        """`[..., features]` -> `[..., *shape]`."""
        inner = inputs @ parameters["down"]
        if self.curved:
            inner = jnp.tanh(inner)
        return jnp.tensordot(inner, parameters["up"], 1) + parameters["bias"]

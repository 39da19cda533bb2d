"""Global attention of Luong et al. 2015."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_positive
from ...foundation.shapes import check_shapes
from ...layers.layer import OWN_AXES, Layer, kernel
from ...ops.attention.api import attention


@dataclasses.dataclass(frozen=True)
class LuongGlobal(Layer):
    """Luong global attention: a decoder state attends to all source states and is combined with its context.

        c_t = Σ_s softmax_s(score(h_t, h̄_s)) h̄_s
        out_t = tanh(W_c [c_t; h_t])

    Luong, Pham & Manning 2015 (arXiv:1508.04025). The score is any similarity of `jattn.similarities`: the paper's
    are `Dot()`, `Bilinear(W)` ("general") and `Additive` ("concat"). With input feeding, the caller concatenates
    `out_{t-1}` to the next decoder input.

    Args:
        features: features of decoder states, source states and the output.

    Raises:
        ValueError: `features` is below 1; at the call, shapes do not match; as in `jattn.attention`.

    >>> import jax
    >>> layer = LuongGlobal(16)
    >>> parameters = layer.init(jax.random.key(0))
    >>> jax.jit(layer)(parameters, jax.numpy.ones((2, 5, 16)), jax.numpy.ones((2, 9, 16))).shape
    (2, 5, 16)
    """

    own_axes = OWN_AXES

    features: int

    def __post_init__(self):
        check_positive(features=self.features)

    def parameters(self) -> dict[str, Any]:
        """`out.kernel [2 features, features]`, context first."""
        return {"out": {"kernel": kernel(2 * self.features, self.features)}}

    def __call__(self, parameters: Mapping[str, Any], states: jax.Array, sources: jax.Array, **pieces: Any) -> Any:
        """`[..., q_len, features]`.

        Args:
            parameters: the layer's parameters.
            states: h, `[..., q_len, features]`.
            sources: h̄, `[..., kv_len, features]`.
            **pieces: arguments of `jattn.attention`: `similarity`, `mask` (`jattn.masks.Lengths` for padded sources),
                ...
        """
        check_shapes(
            {"features": self.features}, states=(states, "... q_len features"), sources=(sources, "... kv_len features")
        )
        context = attention(states[..., None, :], sources[..., None, :], sources[..., None, :], **pieces)[..., 0, :]
        return jnp.tanh(jnp.concatenate([context, states], -1) @ parameters["out"]["kernel"])

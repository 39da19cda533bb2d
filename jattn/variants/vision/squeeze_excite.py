"""Squeeze-and-excitation: the channels of an image, gated by their means."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from ...foundation.arguments import check_positive
from ...foundation.numerics import accumulation_dtype
from ...layers.layer import Layer, bias, kernel
from .images import IMAGE_AXES, as_dtype, check_images


@dataclasses.dataclass(frozen=True)
class SqueezeExcite(Layer):
    """Squeeze-and-excitation: channels of an image gated by their means.

        s = σ(W₂ relu(W₁ mean(x) + b₁) + b₂),    out = s ⊙ x

    Hu, Shen & Sun 2018 (arXiv:1709.01507); the mean is over all pixels.

    Args:
        channels: channels of x.
        hidden: channels of the hidden layer; `channels / 16` in the paper.

    Raises:
        ValueError: a size is below 1; at the call, shapes do not match, or an image has no pixels.

    >>> import jax
    >>> layer = SqueezeExcite(32, 2)
    >>> parameters = layer.init(jax.random.key(0))
    >>> jax.jit(layer)(parameters, jax.numpy.ones((2, 7, 5, 32))).shape
    (2, 7, 5, 32)
    """

    own_axes = IMAGE_AXES

    channels: int
    hidden: int

    def __post_init__(self):
        check_positive(**dataclasses.asdict(self))

    def parameters(self) -> dict[str, Any]:
        """`down` and `up`, each with `kernel` and `bias`."""
        return {
            "down": {"kernel": kernel(self.channels, self.hidden), "bias": bias(self.hidden)},
            "up": {"kernel": kernel(self.hidden, self.channels), "bias": bias(self.channels)},
        }

    def gates(self, parameters: Mapping[str, Any], images: jax.Array) -> jax.Array:
        """s, `[..., channels]`, float32 (float64); arguments as in `__call__`."""
        check_images(images, self.channels)
        dtype = accumulation_dtype(images)
        down, up = parameters["down"], parameters["up"]
        arrays = as_dtype(dtype, down["kernel"], down["bias"], up["kernel"], up["bias"])
        hidden = jax.nn.relu(images.astype(dtype).mean((-3, -2)) @ arrays[0] + arrays[1])
        return jax.nn.sigmoid(hidden @ arrays[2] + arrays[3])

    def __call__(self, parameters: Mapping[str, Any], images: jax.Array) -> jax.Array:
        """`[..., height, width, channels]`, in the dtype of `images`.

        Args:
            parameters: the layer's parameters.
            images: x, `[..., height, width, channels]`.
        """
        gates = self.gates(parameters, images)
        return (images * gates[..., None, None, :]).astype(images.dtype)

"""CBAM: gates for channels, then for pixels."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_positive
from ...foundation.numerics import accumulation_dtype
from ...layers.layer import Layer, kernel
from .images import IMAGE_AXES, as_dtype, check_images, convolve


@dataclasses.dataclass(frozen=True)
class CBAM(Layer):
    """CBAM: channels of an image gated by their mean and maximum, then pixels gated by a convolution.

        M_c = σ(W₂ relu(W₁ mean(x)) + W₂ relu(W₁ max(x)))          mean and max over pixels, one network for both
        x' = M_c ⊙ x
        M_s = σ(conv([mean_c(x'); max_c(x')]))                     over channels; zeros around the image
        out = M_s ⊙ x'

    Woo et al. 2018 (arXiv:1807.06521), without biases and batch norm, as in its equations. Where several values are the
    maximum, they share the gradient.

    Args:
        channels: channels of x.
        hidden: channels of the hidden layer; `channels / 16` in the paper.
        kernel_size: side of the convolution, odd; 7 in the paper.

    Raises:
        ValueError: a size is below 1; `kernel_size` is even; at the call, shapes do not match, or an image has no
            pixels.

    >>> import jax
    >>> layer = CBAM(32, 2)
    >>> parameters = layer.init(jax.random.key(0))
    >>> jax.jit(layer)(parameters, jax.numpy.ones((2, 7, 5, 32))).shape
    (2, 7, 5, 32)
    """

    own_axes = IMAGE_AXES

    channels: int
    hidden: int
    kernel_size: int = 7

    def __post_init__(self):
        check_positive(**dataclasses.asdict(self))
        if self.kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` must be odd, so that it has a middle; got {self.kernel_size}.")

    def parameters(self) -> dict[str, Any]:
        """`down [channels, hidden]`, `up [hidden, channels]`, `spatial [size, size, 2, 1]`, mean first."""
        return {
            "down": kernel(self.channels, self.hidden),
            "up": kernel(self.hidden, self.channels),
            "spatial": kernel(self.kernel_size, self.kernel_size, 2, 1, inputs=3),
        }

    def __call__(self, parameters: Mapping[str, Any], images: jax.Array) -> jax.Array:
        """`[..., height, width, channels]`, in the dtype of `images`.

        Args:
            parameters: the layer's parameters.
            images: x, `[..., height, width, channels]`.
        """
        check_images(images, self.channels)
        dtype = accumulation_dtype(images)
        x, down, up, spatial = as_dtype(dtype, images, *(parameters[name] for name in ("down", "up", "spatial")))
        pooled = jnp.stack([x.mean((-3, -2)), x.max((-3, -2))])
        channel = jax.nn.sigmoid((jax.nn.relu(pooled @ down) @ up).sum(0))
        x = x * channel[..., None, None, :]
        across = jnp.stack([x.mean(-1), x.max(-1)], -1)
        return (x * jax.nn.sigmoid(convolve(across, spatial))).astype(images.dtype)

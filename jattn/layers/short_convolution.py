"""A short causal depthwise convolution as a layer, for layers that convolve their projections."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arguments import check_positive
from ..ops.convolution.short import convolve
from .layer import OWN_AXES, Layer, bias, normal


@dataclasses.dataclass(frozen=True)
class ShortConvolution(Layer):
    """A causal depthwise convolution with its filters, as recurrent layers apply it to queries, keys and values.

    Args:
        channels: number of channels, each with its own filter.
        taps: length of a filter.
        use_bias: whether to add a bias for each channel.

    Raises:
        ValueError: a size is below 1.

    >>> import jax
    >>> layer = ShortConvolution(6, 4)
    >>> out, past = jax.jit(layer)(layer.init(jax.random.key(0)), jax.numpy.ones((2, 10, 6)))
    >>> out.shape, past.shape
    ((2, 10, 6), (2, 3, 6))
    """

    own_axes = OWN_AXES

    channels: int
    taps: int = 4
    use_bias: bool = False

    def __post_init__(self):
        check_positive(channels=self.channels, taps=self.taps)

    def parameters(self) -> dict[str, Any]:
        """`kernel [taps, channels]`, and `bias [channels]` if `use_bias`."""
        made = {"kernel": bias(self.taps, self.channels, init=normal(self.taps**-0.5))}
        return {**made, "bias": bias(self.channels)} if self.use_bias else made

    def __call__(
        self, parameters: Mapping[str, Any], inputs: jax.Array, past: jax.Array | None = None, segment_ids: Any = None
    ) -> tuple[jax.Array, jax.Array]:
        """The outputs `[..., length, channels]`, and the last `taps - 1` inputs, to pass as `past` to the next call."""
        out, past = convolve(inputs, parameters["kernel"], past, segment_ids)
        return out + parameters["bias"].astype(out.dtype) if self.use_bias else out, past

    def of_heads(
        self, parameters: Mapping[str, Any], arrays: Sequence[jax.Array], past: jax.Array | None, segment_ids: Any
    ) -> tuple[list[jax.Array], jax.Array]:
        """Convolve several arrays `[..., length, heads, dim]` as one with all their channels, then apply SiLU."""
        sizes = [array.shape[-2] * array.shape[-1] for array in arrays]
        flat = [array.reshape(*array.shape[:-2], size) for array, size in zip(arrays, sizes, strict=True)]
        out, past = self(parameters, jnp.concatenate(flat, -1), past, segment_ids)
        parts = jnp.split(jax.nn.silu(out), np.cumsum(sizes)[:-1], -1)
        return [part.reshape(array.shape) for part, array in zip(parts, arrays, strict=True)], past

"""Images `[..., height, width, channels]`: checks and helpers shared by this folder."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.shapes import check_shapes

IMAGE_AXES: Mapping[str, str] = {"__call__": "height width channels"}
"""`Layer.own_axes` of layers of images."""


def check_images(images: Any, channels: int) -> None:
    """Check that images have this many channels and at least one pixel.

    Raises:
        ValueError: they do not.
    """
    sizes = check_shapes({"channels": channels}, images=(images, "... height width channels"))
    if 0 in (sizes["height"], sizes["width"]):
        raise ValueError(f"`images` must have pixels; got shape {images.shape}.")


def convolve(images: jax.Array, weight: jax.Array) -> jax.Array:
    """Convolve to `[..., height, width, out]`; zero padding keeps the size. `weight` is `[rows, columns, in, out]`."""
    *batch, height, width, channels = images.shape
    dimensions = ("NHWC", "HWIO", "NHWC")
    flat = images.reshape(-1, height, width, channels)
    out = jax.lax.conv_general_dilated(flat, weight, (1, 1), "SAME", dimension_numbers=dimensions)
    return out.reshape(*batch, height, width, weight.shape[-1])


def as_tokens(images: jax.Array) -> jax.Array:
    """`[..., height * width, channels]`, row by row."""
    *batch, height, width, channels = images.shape
    return images.reshape(*batch, height * width, channels)


def as_dtype(dtype: jnp.dtype, *arrays: jax.Array) -> list[jax.Array]:
    """The arrays in one dtype."""
    return [jnp.asarray(array, dtype) for array in arrays]

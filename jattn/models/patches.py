"""Images as tokens: a linear map of each patch, a class token before them, and learned positions."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ..foundation.arguments import check_positive
from ..foundation.arrays import as_array, describe, dtype_of
from .encoder import NORMAL

Size = int | tuple[int, ...]


class PatchEmbedding(nnx.Module):
    """tokens = [c; W patch_1 + b; W patch_2 + b; ...] + positions, patches row by row.

    Dosovitskiy et al. 2021 (arXiv:2010.11929), equation 1.

    Args:
        image_size: height and width of images in pixels, or one number for both.
        patch_size: height and width of a patch, likewise.
        channels: channels of images.
        features: features of a token.
        use_bias: whether there is a b.
        options: `dtype`, `param_dtype` and `rngs`.

    Raises:
        ValueError: a size is not one or two numbers of at least 1; a patch is larger than an image; at the call, images
            have another size.
    """

    def __init__(
        self, image_size: Size, patch_size: Size, channels: int, features: int, *, use_bias: bool = True, **options: Any
    ):
        self.image_size, self.patch_size = as_pair("image_size", image_size), as_pair("patch_size", patch_size)
        rows, columns = (whole // part for whole, part in zip(self.image_size, self.patch_size, strict=True))
        if rows * columns == 0:
            raise ValueError(f"`patch_size` must be at most `image_size`, {image_size}; got {patch_size}.")
        self.channels = channels
        rngs, param_dtype = options["rngs"], options["param_dtype"]
        self.projection = nnx.Conv(
            channels,
            features,
            self.patch_size,
            strides=self.patch_size,
            padding="VALID",
            use_bias=use_bias,
            kernel_init=NORMAL,
            **options,
        )
        self.class_token = nnx.Param(NORMAL(rngs.params(), (features,), param_dtype))
        self.positions = nnx.Param(NORMAL(rngs.params(), (1 + rows * columns, features), param_dtype))

    def __call__(self, images: Any) -> jax.Array:
        """`[..., height, width, channels]` -> `[..., 1 + patches, features]`."""
        images = checked_images(images, self.image_size, self.channels)
        patches = self.projection(images)
        patches = patches.reshape(*patches.shape[:-3], math.prod(patches.shape[-3:-1]), patches.shape[-1])
        first = jnp.broadcast_to(
            self.class_token[...].astype(patches.dtype), (*patches.shape[:-2], 1, patches.shape[-1])
        )
        return jnp.concatenate([first, patches], -2) + self.positions[...].astype(patches.dtype)


def as_pair(name: str, size: Any) -> tuple[int, int]:
    """Height and width.

    Raises:
        ValueError: it is neither a number nor two.

    >>> as_pair("image_size", 224)
    (224, 224)
    """
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2:
        raise ValueError(f"`{name}` must be one number, or height and width; got {size!r}.")
    for one in pair:
        check_positive(**{name: one})
    return pair


def checked_images(images: Any, size: tuple[int, int], channels: int) -> jax.Array:
    """Images as an array `[..., height, width, channels]` of floating-point numbers.

    Raises:
        ValueError: they have another shape, or are integers.

    >>> checked_images(jnp.zeros((2, 3, 8, 8)), (8, 8), 3)
    Traceback (most recent call last):
    ...
    ValueError: `images` must have shape [..., 8, 8, 3]; got (2, 3, 8, 8): channels come last, so pixel values of \
Hugging Face are `pixel_values.transpose(0, 2, 3, 1)`.
    """
    images = as_array(images)
    dtype = dtype_of(images)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"`images` must be floating-point, normalized as in training; got {describe(images)}.")
    if images.shape[-3:] != (*size, channels):
        remedy = ": channels come last, so pixel values of Hugging Face are `pixel_values.transpose(0, 2, 3, 1)`"
        swapped = images.shape[-3:] == (channels, *size)
        raise ValueError(
            f"`images` must have shape [..., {size[0]}, {size[1]}, {channels}]; got {images.shape}"
            f"{remedy if swapped else ''}."
        )
    return jnp.asarray(images)

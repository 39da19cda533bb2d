"""Padding, for attention that mixes positions before a mask could hide them."""

from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.shapes import token_mask


def present(lengths: Any, batch: tuple[int, ...], length: int) -> jax.Array | None:
    """Booleans `[..., length]`, False for padding; None if there is no padding.

    Raises:
        ValueError: the lengths are not integers, do not have the shape of the batch, or are too long.
    """
    if lengths is None:
        return None
    return token_mask(lengths, batch, length)


def without_padding(lengths: Any, **arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays `[..., length, heads, dim]` with padding, even NaN, replaced by 0."""
    found = []
    for array in arrays.values():
        own = present(lengths, array.shape[:-3], array.shape[-3])
        found.append(array if own is None else jnp.where(own[..., None, None], array, 0))
    return tuple(found)

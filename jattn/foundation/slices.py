"""Slices and quotients with indices that are known to be nonnegative, without the usual handling of negative indices.

Tiled programs consist mostly of such operations, and each costs compile time.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def slice_at(array: Any, starts: Sequence[Any], sizes: Sequence[int]) -> jax.Array:
    """`array[starts[0] : starts[0] + sizes[0], ...]`.

    >>> import jax.numpy as jnp
    >>> print(slice_at(jnp.arange(6).reshape(2, 3), (1, 0), (1, 2)))
    [[3 4]]
    """
    return jax.lax.dynamic_slice(array, _of_one_type(starts), sizes, allow_negative_indices=False)


def quotient(number: Any, divisor: Any) -> tuple[Any, Any]:
    """`divmod` of a nonnegative number.

    >>> quotient(7, 1)
    (7, 0)
    """
    if divisor == 1:
        return number, 0
    number = jnp.asarray(number)
    unsigned = number.astype(jnp.uint64 if number.dtype.itemsize == 8 else jnp.uint32)
    divisor = jnp.asarray(divisor, unsigned.dtype)
    parts = jax.lax.div(unsigned, divisor), jax.lax.rem(unsigned, divisor)
    return parts[0].astype(number.dtype), parts[1].astype(number.dtype)


def put_at(array: jax.Array, tile: jax.Array, starts: Sequence[Any]) -> jax.Array:
    """`array` with `tile` written at `starts`.

    >>> import jax.numpy as jnp
    >>> print(put_at(jnp.zeros(4), jnp.ones(2), (1,)))
    [0. 1. 1. 0.]
    """
    return jax.lax.dynamic_update_slice(array, tile, _of_one_type(starts), allow_negative_indices=False)


def _of_one_type(starts: Sequence[Any]) -> Sequence[Any]:
    """Convert indices to one dtype. With 64-bit types enabled, Python ints are int64, other indices maybe int32."""
    types = {start.dtype for start in starts if hasattr(start, "dtype")}
    if not types or types == {jnp.result_type(int)}:
        return starts
    dtype = jnp.result_type(*types)
    return [jnp.asarray(start, dtype) for start in starts]

"""Tiles of values that depend on the distance of a query and a key alone: a row of all values, shifted for each key.

A *row of distances* of a call has the entry g for `query index - key index == g - kv_len`. A tile of k keys and q
queries needs the window of k + q of its entries that begins with that of `first query - first key - k`:

    tile[j, i] = window[k + i - j]

So key j sees the window rolled to the right by j. The gradient of the window sums the rows of the tile's, rolled back.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

ROWS = 8
"""Rows of a register."""


def length(q_len: int, kv_len: int) -> int:
    """The number of entries of a row of distances."""
    return q_len + kv_len


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def diagonals(window: jax.Array, keys: int, queries: int) -> jax.Array:
    """The tile `[keys, queries]` of a window `[1, keys + queries]`."""
    from jax.experimental.pallas import tpu  # kernels are imported when they are needed

    rows = jnp.broadcast_to(window, (keys, keys + queries))
    return tpu.roll(rows, 0, 1, stride=1, stride_axis=0)[:, keys:]


def _forward(window: jax.Array, keys: int, queries: int) -> tuple[jax.Array, None]:
    return diagonals(window, keys, queries), None


def _backward(keys: int, queries: int, _: None, cotangent: jax.Array) -> tuple[jax.Array]:
    """Groups of rows are rolled back and summed first, then the rows of the sum."""
    from jax.experimental.pallas import tpu

    whole = keys + queries
    rows = ROWS if keys % ROWS == 0 else 1
    wide = jnp.concatenate([jnp.zeros((keys, keys), cotangent.dtype), cotangent], 1)

    def back(values: Any, by: int) -> Any:
        return values if by == 0 else tpu.roll(values, whole - by, 1)

    total = wide[:rows]
    for first in range(rows, keys, rows):
        total = total + back(wide[first : first + rows], first)
    return (sum((back(total[row : row + 1], row) for row in range(1, rows)), total[:1]),)


diagonals.defvjp(_forward, _backward)

"""Tiles of values that depend on the distance of a query and a key alone: a row of all values, shifted for each key.

A *row of distances* of a call has the entry g for `query index - key index == g - kv_len`. A tile of k keys and q
queries needs the window of k + q of its entries that begins with that of `first query - first key - k`:

    tile[j, i] = window[k + i - j]

So key j sees the window rolled to the right by j. The gradient of the window sums the rows of the tile's, rolled back.
TPUs roll each row by its own number, except v4.
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


def diagonals(window: jax.Array, keys: int, queries: int) -> jax.Array:
    """The tile `[keys, queries]` of a window `[1, keys + queries]`."""
    return _diagonals(window, keys, queries, True)


def diagonals_by_groups(window: jax.Array, keys: int, queries: int) -> jax.Array:
    """The same by rolls of whole groups of rows."""
    return _diagonals(window, keys, queries, False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _diagonals(window: jax.Array, keys: int, queries: int, strided: bool) -> jax.Array:
    from jax.experimental.pallas import tpu  # kernels are imported when they are needed

    if strided:
        rows = jnp.broadcast_to(window, (keys, keys + queries))
        return tpu.roll(rows, 0, 1, stride=1, stride_axis=0)[:, keys:]
    count = ROWS if keys % ROWS == 0 else 1

    def on(values: Any, by: int) -> Any:
        return values if by == 0 else tpu.roll(values, by, 1)

    first = jnp.concatenate([on(window, row) for row in range(count)], 0)
    return jnp.concatenate([on(first, row)[:, keys:] for row in range(0, keys, count)], 0)


def _forward(window: jax.Array, keys: int, queries: int, strided: bool) -> tuple[jax.Array, None]:
    return _diagonals(window, keys, queries, strided), None


def _backward(keys: int, queries: int, strided: bool, _: None, cotangent: jax.Array) -> tuple[jax.Array]:
    """Groups of rows are rolled back and summed first, then the rows of the sum."""
    from jax.experimental.pallas import tpu

    del strided
    whole = keys + queries
    rows = ROWS if keys % ROWS == 0 else 1
    wide = jnp.concatenate([jnp.zeros((keys, keys), cotangent.dtype), cotangent], 1)

    def back(values: Any, by: int) -> Any:
        return values if by == 0 else tpu.roll(values, whole - by, 1)

    total = wide[:rows]
    for first in range(rows, keys, rows):
        total = total + back(wide[first : first + rows], first)
    return (sum((back(total[row : row + 1], row) for row in range(1, rows)), total[:1]),)


_diagonals.defvjp(_forward, _backward)

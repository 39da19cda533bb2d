"""Query, key, value and rows in the layout of the kernels: heads before length, padded with zeros to whole tiles."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .geometry import LANES, Cut, rounded


def heads_first(array: jax.Array, cut: Cut, padded: int) -> jax.Array:
    """`[batch..., length, heads, features]` -> `[batch, heads, padded, features]`, with zeros up to whole lanes."""
    length, heads, features = array.shape[-3:]
    array = jnp.swapaxes(array.reshape(cut.batch, length, heads, features), 1, 2)
    return jnp.pad(array, ((0, 0), (0, 0), (0, padded - length), (0, rounded(max(features, 1), LANES) - features)))


def heads_last(array: jax.Array, cut: Cut, length: int, features: int) -> jax.Array:
    """The inverse of `heads_first`."""
    array = jnp.swapaxes(array[:, :, :length, :features], 1, 2)
    return array.reshape(*cut.axes, *array.shape[1:])


def rows_first(array: jax.Array, cut: Cut, fill: float = 0.0) -> jax.Array:
    """`[batch..., q_len, q_heads]` -> `[batch, steps, heads of a step, q_len]`, padded."""
    array = jnp.swapaxes(array.reshape(cut.batch, cut.q_len, cut.q_heads), 1, 2)
    array = jnp.pad(array, ((0, 0), (0, 0), (0, cut.padded[0] - cut.q_len)), constant_values=fill)
    return array.reshape(cut.batch, cut.steps, cut.heads, cut.padded[0])


def rows_last(array: jax.Array, cut: Cut) -> jax.Array:
    """The inverse of `rows_first`."""
    array = array.reshape(cut.batch, cut.q_heads, cut.padded[0])[:, :, : cut.q_len]
    return jnp.swapaxes(array, 1, 2).reshape(*cut.axes, cut.q_len, cut.q_heads)


def queries_first(array: jax.Array, cut: Cut) -> jax.Array:
    """`[batch..., q_len, q_heads, features]` as the kernels read it: heads first, or blocked (see `Cut`)."""
    array = heads_first(array, cut, cut.padded[0])
    if not cut.blocked:
        return array
    tiles = array.reshape(cut.batch, cut.steps, cut.heads, cut.q_tiles, cut.q_tile, array.shape[-1])
    return jnp.swapaxes(tiles, 2, 3)


def queries_last(array: jax.Array, cut: Cut, features: int) -> jax.Array:
    """The inverse of `queries_first`."""
    if cut.blocked:
        array = jnp.swapaxes(array, 2, 3).reshape(cut.batch, cut.q_heads, cut.padded[0], array.shape[-1])
    return heads_last(array, cut, cut.q_len, features)


def from_units(array: jax.Array, cut: Cut, features: int) -> jax.Array:
    """`[batch, steps, q_tiles, units, features, queries of a unit]` -> `[batch..., q_len, q_heads, features]`."""
    array = array.reshape(cut.batch, cut.steps, cut.q_tiles, cut.heads, cut.parts, -1, cut.unit)
    array = jnp.moveaxis(array, (2, 4, 6), (3, 4, 5))  # batch, steps, heads, tiles, parts, queries, features
    array = array.reshape(cut.batch, cut.q_heads, cut.padded[0], -1)
    return heads_last(array, cut, cut.q_len, features)


def from_tiles(array: jax.Array, cut: Cut, features: int) -> jax.Array:
    """`[batch, kv_heads, kv_tiles, features, keys of a tile]` -> `[batch..., kv_len, kv_heads, features]`."""
    array = jnp.swapaxes(array, 3, 4).reshape(cut.batch, cut.kv_heads, cut.padded[1], -1)
    return heads_last(array, cut, cut.kv_len, features)


def nonfinite_tiles(value: jax.Array, cut: Cut) -> jax.Array:
    """int32 `[batch, steps of different key heads, key heads of a step x key tiles]`: 1 where a tile has NaN or inf.

    Args:
        value: heads first, padded.
    """
    tiles = value.reshape(cut.batch, cut.kv_heads, cut.kv_tiles, -1)
    found = ~jnp.isfinite(tiles).all(-1)
    return found.astype(jnp.int32).reshape(cut.batch, cut.kv_heads // cut.key_heads, cut.key_heads * cut.kv_tiles)


def no_flags(cut: Cut) -> jax.Array:
    """`nonfinite_tiles` of finite values, where nobody asks for a tile."""
    return jnp.zeros((cut.batch, cut.kv_heads // cut.key_heads, 1), jnp.int32)


def widened(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Arrays with float16 as float32: kernels cannot load it."""
    return tuple(array.astype(jnp.float32) if array.dtype == jnp.float16 else array for array in arrays)


def narrowed(tree: Any) -> Any:
    """A tree with its arrays of 64 bits in 32: kernels have no others. NumPy arrays stay NumPy arrays."""
    narrow = {"int64": np.int32, "uint64": np.uint32, "float64": np.float32}

    def one(array: Any) -> Any:
        dtype = str(array.dtype)
        return array.astype(narrow[dtype]) if dtype in narrow else array

    return jax.tree.map(one, tree)

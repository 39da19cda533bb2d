"""Checks and sums that all measures share: queries that count, and their mean."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arrays import as_array, describe, dtype_of, known_values


def checked(weights: Any, where: Any = None) -> tuple[jax.Array, jax.Array]:
    """Weights in float32, 0 where a pair does not count, and which queries count, `[..., heads, queries]`.

    A query counts if one of its pairs does and it attends to anything.

    Raises:
        ValueError: the shapes are not those of attention.
    """
    dtype = dtype_of(weights)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating) or len(weights.shape) < 3:
        raise ValueError(
            "`weights` must be a floating-point array [..., heads, queries, keys] of JAX or NumPy; got "
            f"{describe(weights)}. `jattn.analysis.read` takes other sources."
        )
    weights = jnp.asarray(weights, jnp.float32)
    if where is None:
        return weights, weights.sum(-1) != 0
    if dtype_of(where) != np.bool_ or not _broadcasts(where.shape, weights.shape):
        raise ValueError(
            f"`where` must be booleans that broadcast to the shape {weights.shape} of `weights`; got {describe(where)}."
        )
    weights = jnp.where(where, weights, 0)
    return weights, jnp.broadcast_to(where, weights.shape).any(-1) & (weights.sum(-1) != 0)


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    pairs = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(have in (1, want) for have, want in pairs)


def probabilities(weights: jax.Array) -> jax.Array:
    """Each row divided by its sum; rows of zeros stay."""
    total = weights.sum(-1, keepdims=True)
    return weights / jnp.where(total == 0, 1, total)


def mean_of_rows(values: jax.Array, counts: jax.Array, per_query: bool = False) -> jax.Array:
    """The mean over the queries that count, of all examples: `[..., heads, queries]` -> `[heads]`.

    Args:
        values: `[..., heads, queries]`.
        counts: which queries count, of the same shape.
        per_query: return the values themselves instead, 0 where a query does not count.
    """
    values = jnp.where(counts, values, 0)
    if per_query:
        return values
    axes = (*range(values.ndim - 2), values.ndim - 1)
    return values.sum(axes) / jnp.maximum(counts.sum(axes), 1)


def positions(weights: Any, queries: Any) -> tuple[jax.Array, jax.Array]:
    """The positions of queries `[queries, 1]` and keys `[keys]`.

    Raises:
        ValueError: they are not said, and there are fewer queries than keys.
    """
    q_len, kv_len = weights.shape[-2:]
    if queries is None:
        if q_len != kv_len:
            raise ValueError(
                f"`queries` must be the positions of the {q_len} queries among the {kv_len} keys, as their numbers "
                "differ: for the last ones, `queries=numpy.arange(keys - queries, keys)`. Got None."
            )
        queries = np.arange(q_len)
    if np.shape(queries) != (q_len,):
        raise ValueError(f"`queries` must be {q_len} positions, one for each query; got {describe(queries)}.")
    return jnp.asarray(checked_queries(queries, kv_len))[:, None], jnp.arange(kv_len)


def checked_queries(queries: Any, kv_len: int) -> Any:
    """The positions of queries among keys, integers `[queries]`.

    Raises:
        ValueError: they are something else, or known to be out of range.
    """
    array = as_array(queries)
    dtype = dtype_of(array)
    known = known_values(array)
    if (
        dtype is None
        or not jnp.issubdtype(dtype, jnp.integer)
        or len(array.shape) != 1
        or (known is not None and known.size and not (known.min() >= 0 and known.max() < kv_len))
    ):
        got = describe(queries) if known is None or known.ndim != 1 else known.tolist()
        raise ValueError(f"`queries` must be integers [queries] from 0 to {kv_len - 1}, positions of keys; got {got}.")
    return array


def booleans(name: str, array: Any, shape: str) -> jax.Array:
    """Booleans, also as ones and zeros.

    Args:
        name, shape: what to call them in the message.
        array: booleans or known integers, an array or nested lists.

    Raises:
        ValueError: they are something else, such as indices or probabilities.

    >>> booleans("keys", [1, 0], "[keys]").tolist()
    [True, False]
    """
    found = as_array(array)
    dtype, known = dtype_of(found), known_values(found)
    ones = known is not None and np.issubdtype(known.dtype, np.integer) and np.isin(known, (0, 1)).all()
    if dtype != np.bool_ and not ones:
        raise ValueError(f"`{name}` must be booleans {shape}, or ones and zeros; got {describe(array)}.")
    return jnp.asarray(found, bool)


def share_of(part: jax.Array, whole: jax.Array) -> jax.Array:
    """part / whole; 0 where the whole is 0."""
    return part / jnp.where(whole == 0, 1, whole)

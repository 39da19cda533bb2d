"""A call restricted to some of its heads and queries."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...foundation.arrays import as_array, describe, dtype_of, known_values
from .call import Call


def select(
    call: Call, query: jax.Array, key: jax.Array, *, heads: Sequence[int] | None, queries: Sequence[int] | None
) -> tuple[Call, jax.Array, jax.Array]:
    """The call restricted to these query heads and query rows, with the matching query and key.

    Raises:
        ValueError: an index is out of range.
    """
    if heads is not None:
        chosen = _indices("heads", heads, call.q_heads)
        group = call.q_heads // call.kv_heads
        query, key = query[..., chosen, :], key[..., chosen // group, :]
        call = _take(call, len(call.batch), chosen)
        call = dataclasses.replace(call, q_heads=len(chosen), kv_heads=len(chosen))
    if queries is not None:
        chosen = _indices("queries", queries, call.q_len)
        query = query[..., chosen, :, :]
        call = dataclasses.replace(_take(call, len(call.batch) + 1, chosen), q_len=len(chosen))
    return call, query, key


def as_indices(name: str, indices: Any) -> tuple[int, ...] | None:
    """Indices as a hashable tuple; None for all.

    Raises:
        ValueError: they are not a sequence of integers.
    """
    if indices is None:
        return None
    array = as_array(indices)
    known = known_values(array)
    if known is not None and known.ndim == 1 and (np.issubdtype(known.dtype, np.integer) or not known.size):
        return tuple(known.astype(int).tolist())
    got = (
        "values that are not known while tracing"
        if dtype_of(array) is not None and known is None
        else describe(indices)
    )
    raise ValueError(f"`{name}` must be a list of indices, known outside of `jit`, such as [0, 3]; got {got}.")


def _indices(name: str, indices: Sequence[int], count: int) -> np.ndarray:
    chosen = np.asarray(indices, int)
    if ((chosen < -count) | (chosen >= count)).any():
        raise ValueError(
            f"`{name}` must be indices between 0 and {count - 1} (negative ones count from the end); got {indices!r}."
        )
    return chosen % count


def _take(call: Call, axis: int, chosen: np.ndarray) -> Call:
    """Take indices along one layout axis of every aligned array of the call."""

    def one(leaf: Any) -> Any:
        if leaf.shape[axis] == 1:
            return leaf
        backend = np if isinstance(leaf, np.ndarray) else jnp
        return backend.take(leaf, chosen, axis=axis)

    return dataclasses.replace(call, pieces=jax.tree.map(one, call.pieces))

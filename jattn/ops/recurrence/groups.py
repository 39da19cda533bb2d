"""Grouped heads: several values stored under one key, and several queries that read one state.

What the heads of a group share is not mapped over: it is not repeated, and products of queries and keys are computed
once per group. Only gradients have one copy per head before they are summed.
"""

from collections.abc import Callable
from typing import Any

import jax


def copies_of(query: jax.Array, key: jax.Array, value: jax.Array) -> int:
    """The number of output heads that share a key. Heads are the second to last axis."""
    return max(query.shape[-2], value.shape[-2]) // max(key.shape[-2], 1)


def over_groups(
    run: Callable[..., tuple[jax.Array, jax.Array]],
    query: jax.Array,
    key: jax.Array,
    arrays: dict[str, Any],
    state: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Apply `run(query, key, state=..., **arrays) -> (out, state)`, written for equal head counts, to grouped heads.

    The heads of a group are consecutive.

    Args:
        run: the recurrence.
        query: `[..., q_heads, k_dim]`; `q_heads` equals `k_heads`, or is a multiple of `heads`.
        key: `[..., k_heads, k_dim]`; `heads` is a multiple of `k_heads`.
        arrays: `[..., heads, dim]`, or None.
        state: `[..., heads, k_dim, v_dim]`.

    Returns:
        The output `[..., max(q_heads, heads), v_dim]` and the state `[..., heads, k_dim, v_dim]`.
    """
    q_heads, k_heads, heads = query.shape[-2], key.shape[-2], state.shape[-3]
    if q_heads == k_heads == heads:
        return run(query, key, state=state, **arrays)
    sharing = heads // k_heads
    readers = None if q_heads == k_heads != heads else q_heads // heads

    def split(array: Any, *groups: int, behind: int = 1) -> Any:
        """Split the head axis, which precedes the last `behind` axes, into `[k_heads, *groups]`."""
        if array is None:
            return None
        at = array.ndim - behind
        return array.reshape(*array.shape[: at - 1], k_heads, *groups, *array.shape[at:])

    def one(query, key, arrays, state):
        return run(query, key, state=state, **arrays)

    if readers is not None:
        query = split(query, sharing, readers)
        one = jax.vmap(one, in_axes=(-2, None, None, None), out_axes=(-2, None))
    one = jax.vmap(
        one, in_axes=(None if readers is None else -3, None, -2, -3), out_axes=(-2 if readers is None else -3, -3)
    )
    arrays = {name: split(array, sharing) for name, array in arrays.items()}
    out, state = one(query, key, arrays, split(state, sharing, behind=2))
    merged = q_heads if readers is not None else heads
    at = -4 if readers is not None else -3
    out = out.reshape(*out.shape[:at], merged, out.shape[-1])
    return out, state.reshape(*state.shape[:-4], heads, *state.shape[-2:])

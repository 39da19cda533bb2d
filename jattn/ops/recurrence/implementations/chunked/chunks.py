"""Runs a recurrence chunk by chunk: splits sequences and carries the state."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ...nonfinite import begin, set_nonfinite_aside

TOGETHER = 16
"""The least number of chunks, over all heads and batch elements, that are processed together: enough to fill a few
cores."""


def run_chunks(
    body: Callable,
    sequences: list[Any],
    starts: jax.Array | None,
    state: jax.Array,
    length: int,
    chunk: int,
    *,
    zero_state: bool,
    copies: int,
) -> tuple[jax.Array, jax.Array]:
    """Run `body(state, slices, starts) -> (state, out)` over groups of chunks.

    Only the states between groups are kept for the backward pass, which recomputes everything inside a group. Transpose
    to head-major only inside a group, where the data is in cache.

    Args:
        body: takes the state `[..., heads, k_dim, v_dim]`, arrays `[group, ..., heads, chunk, dim]` in the state's
            dtype, and starts `[group, ..., 1, chunk]` or None; returns the new state and the output
            `[group, ..., heads, chunk, v_dim]`.
        sequences: arrays `[..., length, heads, dim]`, or None. The first is only read; the others are written to the
            state.
        starts: `[..., length]`, where the state restarts, or None.
        state: the initial state.
        length: the length of the sequences.
        chunk: tokens per chunk.
        zero_state: the initial state is known to be zero. The finiteness check, which is slow to compile, is skipped.
        copies: how many of these run at once, if heads that share keys are mapped over.

    Returns:
        The output `[..., length, heads, v_dim]` and the final state. `body` does not see tokens with NaN or inf; the
        result is NaN where they are read. An incomplete last chunk is padded with zeros, which do not change the state.
    """
    axis = state.ndim - 3
    chunks = -(-length // chunk)
    group = group_of(math.prod(state.shape[:-2]) * copies, chunks)
    groups = -(-chunks // group)
    missing = groups * group * chunk - length

    def cut(array):
        array = jnp.pad(array, [(0, missing if i == axis else 0) for i in range(array.ndim)])
        split = array.reshape(*array.shape[:axis], groups, group * chunk, *array.shape[axis + 1 :])
        return jnp.moveaxis(split, axis, 0)

    def by_head(array):
        split = array.reshape(*array.shape[:axis], group, chunk, *array.shape[axis + 1 :])
        return jnp.moveaxis(jnp.moveaxis(split, axis, 0), axis + 1, axis + 2)

    def step(carried, slices):
        state, nonfinite = carried
        sequences, starts = slices
        sequences, nonfinite_outputs, nonfinite = set_nonfinite_aside(sequences, starts, nonfinite)
        wide = [None if one is None else by_head(one.astype(state.dtype)) for one in sequences]
        starts = None if starts is None else jnp.squeeze(by_head(starts[..., None, None]), -1)
        state, out = body(state, wide, starts)
        out = jnp.moveaxis(jnp.moveaxis(out, axis + 2, axis + 1), 0, axis)
        out = out.reshape(*out.shape[:axis], group * chunk, *out.shape[axis + 2 :])
        return (state, nonfinite), jnp.where(nonfinite_outputs[..., None], jnp.nan, out)

    first = begin(state, (sequences, starts), zero_state=zero_state)
    slices = jax.tree.map(cut, (sequences, starts))
    (state, nonfinite), out = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), first, slices)
    out = jnp.moveaxis(out, 0, axis)
    out = out.reshape(*out.shape[:axis], length + missing, *out.shape[axis + 2 :])
    return jax.lax.slice_in_dim(out, 0, length, axis=axis), jnp.where(nonfinite[..., None, None], jnp.nan, state)


def group_of(states: int, chunks: int) -> int:
    """The number of chunks that are processed together, of so many chunks of each of so many states."""
    return max(min(TOGETHER // max(states, 1), chunks), 1)


def carry(state: jax.Array, step: Callable, slices: Any) -> tuple[jax.Array, Any]:
    """`step(state, slice)` over the chunks of a group (the first axis): the final state and all outputs."""
    count = jax.tree.leaves(slices)[0].shape[0]
    if count > 1:
        return jax.lax.scan(step, state, slices)
    state, found = step(state, jax.tree.map(lambda array: array[0], slices))
    return state, jax.tree.map(lambda array: array[None], found)

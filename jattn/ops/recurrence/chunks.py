"""Runs a recurrence chunk by chunk: splits sequences, carries the state, and keeps NaN where it belongs."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...foundation.varying import full, vary, varying_axes

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
    group = min(max(TOGETHER // max(math.prod(state.shape[:-2]) * copies, 1), 1), chunks)
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
        state, lost = carried
        sequences, starts = slices
        sequences, spoiled, lost = set_nonfinite_aside(sequences, starts, lost)
        wide = [None if one is None else by_head(one.astype(state.dtype)) for one in sequences]
        starts = None if starts is None else jnp.squeeze(by_head(starts[..., None, None]), -1)
        state, out = body(state, wide, starts)
        out = jnp.moveaxis(jnp.moveaxis(out, axis + 2, axis + 1), 0, axis)
        out = out.reshape(*out.shape[:axis], group * chunk, *out.shape[axis + 2 :])
        return (state, lost), jnp.where(spoiled[..., None], jnp.nan, out)

    first = begin(state, (sequences, starts), zero_state=zero_state)
    slices = jax.tree.map(cut, (sequences, starts))
    (state, lost), out = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), first, slices)
    out = jnp.moveaxis(out, 0, axis)
    out = out.reshape(*out.shape[:axis], length + missing, *out.shape[axis + 2 :])
    return jax.lax.slice_in_dim(out, 0, length, axis=axis), jnp.where(lost[..., None, None], jnp.nan, state)


def begin(state: jax.Array, inputs: Any, *, zero_state: bool) -> tuple[jax.Array, jax.Array]:
    """The state that a loop over `inputs` begins with, and where the state contains NaN or inf, `[..., heads]`.

    `zero_state` as in `run_chunks`.
    """
    axes = varying_axes(state, inputs)
    if zero_state:
        return vary(state, axes), full(state.shape[:-2], False, jnp.bool_, axes)
    state = vary(state, axes)
    lost = ~jnp.isfinite(state).all((-2, -1))
    return jnp.where(lost[..., None, None], 0, state), lost


def clean_tokens(sequences: list[Any]) -> tuple[list[Any], jax.Array, jax.Array]:
    """The sequences with tokens that contain NaN or inf set to 0; and which tokens those are, `[..., length, heads]`.

    The latter separately for the first sequence, which is only read, and for the others, which are written to the
    state.
    """

    def bad_tokens(array) -> Any:
        return ~jnp.isfinite(jnp.abs(array).max(-1, initial=0))

    flags: list[Any] = [None if one is None else bad_tokens(one) for one in sequences]
    clean = [
        None if one is None else jnp.where(flag[..., None], 0, one) for one, flag in zip(sequences, flags, strict=True)
    ]
    unread, *written = flags
    return clean, unread, functools.reduce(jnp.logical_or, [one for one in written if one is not None])


@jax.jit  # outside a jit, each step of the scan's tree would be several programs
def largest_so_far(x: jax.Array, starts: jax.Array | None) -> jax.Array:
    """The running maximum of `[..., length, heads]` within each segment; `starts [..., length]` as in `run_chunks`."""
    axis = x.ndim - 2
    if starts is None:
        return jax.lax.associative_scan(jnp.maximum, x, axis=axis)

    def join(before, after):
        return before[0] | after[0], jnp.where(after[0], after[1], jnp.maximum(before[1], after[1]))

    return jax.lax.associative_scan(join, (jnp.broadcast_to(starts[..., None], x.shape), x), axis=axis)[1]


def set_nonfinite_aside(sequences: list[Any], starts: jax.Array | None, lost: jax.Array) -> tuple[Any, ...]:
    """Replace NaN and inf by zeros, because a product would spread them to tokens whose weight is 0.

    Args:
        sequences: arrays `[..., length, heads, dim]`, or None. The first is only read; the others are written to the
            state.
        starts: `[..., length]`, where the state restarts, or None.
        lost: whether the state before contains any, `[..., heads]`.

    Returns:
        The clean sequences; where the output must be NaN, `[..., length, heads]`; and `lost` after the last token.
    """

    clean, unread, bad = clean_tokens(sequences)
    seen, before = below(bad.shape[-2], diagonal=True), lost[..., None, :]
    if starts is not None:
        begun = (
            jnp.asarray(seen, jnp.float32) @ starts.astype(jnp.float32)[..., None]
        )  # the number of segments that began so far
        seen = seen & (begun == jnp.swapaxes(begun, -1, -2))
        before = before & (begun == 0)
    spoiled = before | (jnp.asarray(seen, jnp.float32) @ bad.astype(jnp.float32) > 0)
    return clean, spoiled | unread, spoiled[..., -1, :]


def carry(state: jax.Array, step: Callable, slices: Any) -> tuple[jax.Array, Any]:
    """`step(state, slice)` over the chunks of a group (the first axis): the final state and all outputs."""
    count = jax.tree.leaves(slices)[0].shape[0]
    if count > 1:
        return jax.lax.scan(step, state, slices)
    state, found = step(state, jax.tree.map(lambda array: array[0], slices))
    return state, jax.tree.map(lambda array: array[None], found)


def below(size: int, *, diagonal: bool) -> np.ndarray:
    """Whether token i (rows) comes after token j (columns), or with `diagonal` is the same."""
    return np.tri(size, k=0 if diagonal else -1, dtype=bool)

"""NaN and inf in a recurrence: tokens that contain any are computed as zeros, and the results set to NaN afterward.

A product with zero would spread them to tokens whose weight is 0, and to the gradients of earlier tokens.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...foundation.sharding import full, vary, varying_axes

FORGET = -1e4
"""Stands in for log 0; its exponential is 0, and 0 times it is finite."""


def begin(state: jax.Array, inputs: Any, *, zero_state: bool) -> tuple[jax.Array, jax.Array]:
    """The state that a loop over `inputs` begins with, and where the state contains NaN or inf, `[..., heads]`.

    `zero_state`: the state is known to be zero. The finiteness check, which is slow to compile, is skipped.
    """
    axes = varying_axes(state, inputs)
    if zero_state:
        return vary(state, axes), full(state.shape[:-2], False, jnp.bool_, axes)
    state = vary(state, axes)
    nonfinite = ~jnp.isfinite(state).all((-2, -1))
    return jnp.where(nonfinite[..., None, None], 0, state), nonfinite


def clean_tokens(sequences: list[Any]) -> tuple[list[Any], jax.Array, jax.Array]:
    """The sequences with tokens that contain NaN or inf set to 0; and which tokens those are, `[..., length, heads]`.

    The latter separately for the first sequence, which is only read, and for the others, which are written to the
    state.
    """

    def nonfinite_tokens(array: Any) -> Any:
        return ~jnp.isfinite(jnp.abs(array).max(-1, initial=0))

    flags: list[Any] = [None if one is None else nonfinite_tokens(one) for one in sequences]
    clean = [
        None if one is None else jnp.where(flag[..., None], 0, one) for one, flag in zip(sequences, flags, strict=True)
    ]
    nonfinite_reads, *written = flags
    return clean, nonfinite_reads, functools.reduce(jnp.logical_or, [one for one in written if one is not None])


@jax.jit  # outside a jit, each step of the scan's tree would be several programs
def largest_so_far(x: jax.Array, starts: jax.Array | None) -> jax.Array:
    """The running maximum of `[..., length, heads]` within each segment; `starts [..., length]` says where one
    begins."""
    axis = x.ndim - 2
    if starts is None:
        return jax.lax.associative_scan(jnp.maximum, x, axis=axis)

    def join(before, after):
        return before[0] | after[0], jnp.where(after[0], after[1], jnp.maximum(before[1], after[1]))

    return jax.lax.associative_scan(join, (jnp.broadcast_to(starts[..., None], x.shape), x), axis=axis)[1]


def set_nonfinite_aside(sequences: list[Any], starts: jax.Array | None, nonfinite: jax.Array) -> tuple[Any, ...]:
    """Replace NaN and inf by zeros, because a product would spread them to tokens whose weight is 0.

    Args:
        sequences: arrays `[..., length, heads, dim]`, or None. The first is only read; the others are written to the
            state.
        starts: `[..., length]`, where the state restarts, or None.
        nonfinite: whether the state before contains any, `[..., heads]`.

    Returns:
        The clean sequences; where the output must be NaN, `[..., length, heads]`; and `nonfinite` after the last token.
    """
    clean, nonfinite_reads, nonfinite_tokens = clean_tokens(sequences)
    seen, before = below(nonfinite_tokens.shape[-2], diagonal=True), nonfinite[..., None, :]
    if starts is not None:
        begun = (
            jnp.asarray(seen, jnp.float32) @ starts.astype(jnp.float32)[..., None]
        )  # the number of segments that began so far
        seen = seen & (begun == jnp.swapaxes(begun, -1, -2))
        before = before & (begun == 0)
    nonfinite_outputs = before | (jnp.asarray(seen, jnp.float32) @ nonfinite_tokens.astype(jnp.float32) > 0)
    return clean, nonfinite_outputs | nonfinite_reads, nonfinite_outputs[..., -1, :]


def below(size: int, *, diagonal: bool) -> np.ndarray:
    """Whether token i (rows) comes after token j (columns), or with `diagonal` is the same."""
    return np.tri(size, k=0 if diagonal else -1, dtype=bool)

"""The definition of both recurrences, one token at a time. The chunked forms are tested against it."""

import jax
import jax.numpy as jnp

from .chunks import begin, clean_tokens, largest_so_far
from .decays import FORGET


def linear_token(query, key, value, decay, bonus, state):
    """One token of the linear recurrence, in the state's dtype.

    Args:
        query: `[..., heads, k_dim]`.
        key: `[..., heads, k_dim]`.
        value: `[..., heads, v_dim]`.
        decay: α, broadcastable to `query`, or None.
        bonus: `[heads, k_dim]`, or None.
        state: `[..., heads, k_dim, v_dim]`.

    Returns:
        The output and the new state.
    """
    written = key[..., :, None] * value[..., None, :]
    kept = state if decay is None else decay[..., None] * state
    new = kept + written
    read = new if bonus is None else state + bonus[..., None] * written
    return jnp.einsum("...hkv,...hk->...hv", read, query), new


def delta_token(query, key, value, beta, decay, state):
    """One token of the delta rule, which decays before it recalls; `beta [..., heads]`, others as in `linear_token`."""
    kept = state if decay is None else decay[..., None] * state
    recalled = jnp.einsum("...hkv,...hk->...hv", kept, key)
    new = kept + key[..., :, None] * (beta[..., None] * (value - recalled))[..., None, :]
    return jnp.einsum("...hkv,...hk->...hv", new, query), new


def scan_tokens(token, sequences, starts, state, *, zero_state):
    """Run `token(*slices, state) -> (out, state)` along the length.

    Args:
        token: a function of the slices of `sequences` and the state.
        sequences: arrays `[..., length, heads, dim]`, or None. The first is only read; the last is a log decay.
        starts: booleans `[..., length]`, where the state restarts, or None.
        state: the initial state.
        zero_state: as in `run_chunks`.

    Returns:
        The outputs `[..., length, heads, dim]` and the final state. NaN where tokens with NaN or inf are read; they are
        computed with zeros instead, because 0 times NaN would reach the gradients of earlier tokens.
    """
    axis = state.ndim - 3  # the length axis, after the batch axes
    *others, decay = sequences
    decay = None if decay is None else jnp.maximum(decay, FORGET)
    state, lost = begin(state, (sequences, starts), zero_state=zero_state)
    sequences, unread, bad = clean_tokens([*others, decay])
    if bad.shape[axis]:
        bad = largest_so_far(bad.at[..., 0, :].max(lost), starts)
        lost = bad[..., -1, :]

    def over_time(array):
        return None if array is None else jnp.moveaxis(array.astype(state.dtype), axis, 0)

    def body(state, slices):
        slices, start = slices
        if start is not None:
            state = jnp.where(start[..., None, None, None], 0, state)
        out, state = token(*slices, state)
        return state, out

    over = None if starts is None else jnp.moveaxis(starts, axis, 0)
    state, out = jax.lax.scan(body, state, (jax.tree.map(over_time, sequences), over))
    out = jnp.where((bad | unread)[..., None], jnp.nan, jnp.moveaxis(out, 0, axis))
    return out, jnp.where(lost[..., None, None], jnp.nan, state)

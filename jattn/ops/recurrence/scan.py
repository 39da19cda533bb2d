"""The definition of both recurrences, one token after the other; the chunked forms equal it."""

import jax
import jax.numpy as jnp

from .chunks import begin, clean_tokens, largest_so_far
from .decays import FORGET


def linear_token(query, key, value, decay, bonus, state):
    """A token of the linear recurrence, all in the state's dtype.

    Args:
        query: `[..., heads, k_dim]`.
        key: as `query`.
        value: `[..., heads, v_dim]`.
        decay: α, that broadcasts to `query`, or None.
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
    """A token of the delta rule, which decays before it recalls; `beta [..., heads]`, the rest as in `linear_token`."""
    kept = state if decay is None else decay[..., None] * state
    recalled = jnp.einsum("...hkv,...hk->...hv", kept, key)
    new = kept + key[..., :, None] * (beta[..., None] * (value - recalled))[..., None, :]
    return jnp.einsum("...hkv,...hk->...hv", new, query), new


def scan_tokens(token, sequences, starts, state, *, zero_state):
    """Run `token(*slices, state) -> (out, state)` along the length.

    Args:
        token: of the slices of `sequences` and the state.
        sequences: arrays `[..., length, heads, dim]`, or None. The first is read only, the last is a log decay.
        starts: booleans `[..., length]` where the state restarts, or None.
        state: the first.
        zero_state: as of `run_chunks`.

    Returns:
        The outputs `[..., length, heads, dim]` and the last state; NaN where tokens with NaN or inf come to be read.
        Tokens are computed without them: 0 times NaN would reach the gradients of earlier ones.
    """
    axis = state.ndim - 3  # of the length: behind the batch axes
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

"""The definition of both recurrences: one token. Decoding runs it, and so does the scan."""

import jax.numpy as jnp


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

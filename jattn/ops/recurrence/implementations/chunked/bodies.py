"""What a chunk computes: attention within the chunk and a state between chunks, all by matrix products."""

import jax.numpy as jnp

from ...nonfinite import FORGET, below
from .chunks import carry, run_chunks
from .decays import Sums, channel_scores, decay_of, sums_of, weights
from .triangular import unit_lower_solve


def chunked_linear(query, key, value, gates, bonus, starts, state, chunk, *, zero_state, copies):
    """The linear recurrence in chunks.

    For a chunk that begins with the state S, with W_ij the decay between the writing of token j and the reading of
    token i, and a_i the decay from the start of the chunk:

        out_i = (a_i ⊙ q_i)ᵀ S + Σ_{j ≤ i} (q_iᵀ (W_ij ⊙ k_j)) v_j

    Args:
        query: `[..., length, heads, k_dim]`, and so for `key`; `value [..., length, heads, v_dim]`.
        gates: log α, `[..., length, heads, 1 or k_dim]`, or None.
        bonus: u, `[heads, k_dim]`, or None.
        starts: booleans `[..., length]`, where the state restarts, or None.
        state: the initial state.
        chunk: tokens per chunk.
        zero_state: as in `run_chunks`, and so for `copies`.
    """
    length = query.shape[-3]
    by_channel = _by_channel(gates)
    chunk = chunk_of(chunk, length, by_channel)

    def body(state, slices, starts):
        query, key, value, gates = slices
        decay = decay_of(gates, starts, late=bonus is not None, like=key)
        if by_channel:
            assert decay is not None
            (scores,), sums = channel_scores((query,), key, decay)
            own = jnp.einsum("...id,...id->...i", query, key if bonus is None else key * bonus[:, None])
            out = scores @ value + own[..., None] * value
        else:
            kept = weights(decay, chunk, state.dtype, diagonal=bonus is None)
            scores = jnp.einsum("...id,...jd->...ij", query, key) * kept
            out = scores @ value
            if bonus is not None:
                out += jnp.einsum("...id,...id->...i", query, key * bonus[:, None])[..., None] * value
            sums = None if decay is None else sums_of(decay)
        reading, keeping, left = _factors(query, key, sums)
        written = jnp.einsum("...jk,...jv->...kv", keeping, value)

        def advance(state, slices):
            left, written = slices
            return (state if left is None else left * state) + written, state

        state, before = carry(state, advance, (left, written))
        return state, out + reading @ before

    return _run(body, [query, key, value, gates], starts, state, length, chunk, zero_state=zero_state, copies=copies)


def chunked_delta(query, key, value, beta, gates, starts, state, chunk, *, zero_state, copies, refine):
    """The delta rule in chunks, by the WY representation.

    Arguments are those of `chunked_linear`, with `beta [..., length, heads, 1]`, and `refine` as in `unit_lower_solve`.

    With u_i = β_i (v_i - S_{i-1}ᵀ D_i k_i) and D_i = diag(α_i), the rule is S_i = D_i S_{i-1} + k_i u_iᵀ, a linear
    recurrence with u in place of the values. In a chunk that begins with S, the u solve a triangular system. With W_ijd
    the decay of channel d between the writing of token j and the reading of token i, and a_id that from the start:

        (I + N) U = diag(β) (V - (a ⊙ K) S),    N_ij = β_i Σ_d k_id k_jd W_ijd  for j < i, else 0
    """
    length = query.shape[-3]
    by_channel = _by_channel(gates)
    chunk = chunk_of(chunk, length, by_channel)

    def body(state, slices, starts):
        query, key, value, beta, gates = slices
        decay = decay_of(gates, starts, late=False, like=key)
        if by_channel:
            assert decay is not None
            (scores, others), sums = channel_scores((query, key), key, decay)
            own = jnp.einsum("...id,...id->...i", query, key)
            scores += own[..., None] * jnp.eye(chunk, dtype=own.dtype)
        else:
            kept = weights(decay, chunk, state.dtype, diagonal=True)
            scores = jnp.einsum("...id,...jd->...ij", query, key) * kept
            others = jnp.einsum("...id,...jd->...ij", key, key) * kept
            others = jnp.where(below(chunk, diagonal=False), others, 0)
            sums = None if decay is None else sums_of(decay)
        reading, keeping, left = _factors(query, key, sums)
        recalling = key if sums is None else key * jnp.exp(sums.reading)
        right = beta * jnp.concatenate([value, recalling], -1)
        values, recalls = jnp.split(unit_lower_solve(beta * others, right, refine=refine), [value.shape[-1]], -1)

        def advance(state, slices):
            values, recalls, keeping, left = slices
            values = values - recalls @ state
            written = jnp.einsum("...jk,...jv->...kv", keeping, values)
            return (state if left is None else left * state) + written, (state, values)

        state, (before, values) = carry(state, advance, (values, recalls, keeping, left))
        return state, reading @ before + scores @ values

    return _run(
        body, [query, key, value, beta, gates], starts, state, length, chunk, zero_state=zero_state, copies=copies
    )


def _by_channel(gates) -> bool:
    return gates is not None and gates.shape[-1] != 1


def chunk_of(chunk: int, length: int, by_channel: bool) -> int:
    """The number of tokens per chunk; a power of two if `channel_scores` halves it."""
    chunk = max(min(chunk, length), 1)
    return 1 << (chunk - 1).bit_length() if by_channel else chunk


def _factors(query, key, sums: Sums | None):
    """Queries for the state before the chunk, keys for the state after it, and the decay over the chunk."""
    if sums is None:
        return query, key, None
    left = jnp.swapaxes(jnp.exp(sums.total), -1, -2)
    return query * jnp.exp(sums.reading), key * jnp.exp(sums.keeping), left


def _run(body, sequences, starts, state, length, chunk, **options):
    gates = sequences[-1]
    sequences = [*sequences[:-1], None if gates is None else jnp.maximum(gates, FORGET)]  # -inf cannot be summed
    return run_chunks(body, sequences, starts, state, length, chunk, **options)

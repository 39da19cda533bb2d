"""Decays between the tokens of a chunk, in logarithms: sums of terms of one sign, never differences of sums.

A difference of running sums loses precision after a gate near 0, and its exponential can overflow. Sums of terms ≤ 0 do
neither, so any gate in [0, 1] works.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...nonfinite import FORGET, below


class Decay(NamedTuple):
    """Log decays at the tokens of a chunk, `[..., chunk, channels]`; a single channel applies to all.

    Attributes:
        before: the decay of the state before token i reads it.
        whole: the decay of the state before token i writes to it, including `before`.
    """

    before: jax.Array
    whole: jax.Array


class Sums(NamedTuple):
    """Sums of log decays over the tokens of a chunk.

    Attributes:
        reading: from the start of the chunk until token i reads, `[..., chunk, channels]`.
        keeping: from after token j wrote until the end of the chunk.
        total: over the whole chunk, `[..., 1, channels]`.
    """

    reading: jax.Array
    keeping: jax.Array
    total: jax.Array


def decay_of(gates: jax.Array | None, starts: jax.Array | None, *, late: bool, like: jax.Array) -> Decay | None:
    """The decays of a chunk.

    Args:
        gates: log α, `[..., chunk, channels]`, or None.
        starts: `[..., chunk]`, where the state restarts before token i reads.
        late: whether token i reads the state before α_i applies.
        like: an array with the batch axes and dtype.
    """
    if gates is None and starts is None:
        return None
    gates = jnp.zeros((*like.shape[:-1], 1), like.dtype) if gates is None else jnp.maximum(gates, FORGET)
    before = jnp.zeros_like(gates) if late else gates
    if starts is not None:
        before = jnp.where(starts[..., None], FORGET, before)
    return Decay(before, before + gates if late else before)


def _product(sums: np.ndarray, of: jax.Array) -> jax.Array:
    """Sums over tokens, in full precision even if the device's default is lower."""
    return jnp.einsum("ij,...jd->...id", jnp.asarray(sums, of.dtype), of, precision=jax.lax.Precision.HIGHEST)


def sums_of(decay: Decay) -> Sums:
    """The sums over a chunk."""
    earlier = below(decay.whole.shape[-2], diagonal=False)
    reading = _product(earlier, decay.whole) + decay.before
    return Sums(reading, _product(earlier.T, decay.whole), decay.whole.sum(-2, keepdims=True))


def scalar_sums(decay: Decay) -> jax.Array:
    """The log decay from the writing of token j to the reading of token i > j, `[..., i, j]`, for one channel."""
    earlier = below(decay.whole.shape[-2], diagonal=False)
    later = jnp.where(earlier, decay.whole, 0)  # of token s > j
    return _product(earlier, later) + decay.before


def weights(decay: Decay | None, size: int, dtype, *, diagonal: bool) -> jax.Array:
    """The decay of what token j wrote until token i reads it, `[..., i, j]`, 0 for j > i; for a single channel.

    Args:
        decay: the decays, or None.
        size: the size of the chunk.
        dtype: the dtype of the result.
        diagonal: whether a token reads what it wrote itself.
    """
    if decay is None:
        return jnp.asarray(below(size, diagonal=diagonal), dtype)
    kept = jnp.where(below(size, diagonal=False), jnp.exp(scalar_sums(decay)), 0)
    return kept + jnp.eye(size, dtype=dtype) if diagonal else kept


def channel_scores(queries: tuple[jax.Array, ...], key: jax.Array, decay: Decay) -> tuple[list[jax.Array], Sums]:
    """Σ_d q_id k_jd W_ijd for j < i, else 0, with W the decay per channel; and the sums over the chunk.

    For two neighboring blocks, queries of the second are weighted by the decay since its start, and keys of the first
    by the decay until its end, so their scores are a matrix product. Blocks double in size, from one token to the whole
    chunk.

    Args:
        queries: several `[..., chunk, k_dim]`; the chunk is a power of two.
        key: `[..., chunk, k_dim]`.
        decay: with `k_dim` channels.

    Returns:
        Scores `[..., i, j]` for each of the queries, and the sums.
    """
    size, block = key.shape[-2], 1

    def halves(array):
        pairs = array.reshape(*array.shape[:-3], array.shape[-3] // 2, 2, *array.shape[-2:])
        return pairs[..., 0, :, :], pairs[..., 1, :, :]

    def blocks(array):
        return array.reshape(*array.shape[:-2], array.shape[-2] // block, block, array.shape[-1])

    def joined(scores, query, kept, reading):
        (_, second), (upper, lower) = halves(blocks(query)), halves(scores)
        across = jnp.einsum("...id,...jd->...ij", second * reading, kept)
        above = jnp.concatenate([upper, jnp.zeros_like(across)], -1)
        return jnp.concatenate([above, jnp.concatenate([across, lower], -1)], -2)

    sums = Sums(blocks(decay.before), jnp.zeros_like(blocks(decay.whole)), blocks(decay.whole))
    scores = [jnp.zeros((*query.shape[:-1], 1, 1), query.dtype) for query in queries]
    while block < size:
        first, second = (Sums(*one) for one in zip(*map(halves, sums), strict=True))
        reading, kept = jnp.exp(second.reading), halves(blocks(key))[0] * jnp.exp(first.keeping)
        scores = [joined(one, query, kept, reading) for one, query in zip(scores, queries, strict=True)]
        sums = Sums(
            jnp.concatenate([first.reading, first.total + second.reading], -2),
            jnp.concatenate([first.keeping + second.total, second.keeping], -2),
            first.total + second.total,
        )
        block *= 2
    return [one[..., 0, :, :] for one in scores], jax.tree.map(lambda array: array[..., 0, :, :], sums)

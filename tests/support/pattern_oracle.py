"""Patterns pair by pair: a dense mask, and softmax attention over the pairs that it allows, in float64."""

import jax.numpy as jnp
import numpy as np

from jattn.foundation.pieces import align


def dense(mask, q_len, kv_len=None, heads=1, query_positions=None, batch=()):
    """Booleans `[batch..., heads, q_len, kv_len]`, from the mask's own formula on every pair."""
    kv_len = q_len if kv_len is None else kv_len
    at = np.arange(q_len) if query_positions is None else np.asarray(query_positions)
    aligned = align(mask, batch, {"head": heads, "query": q_len, "key": kv_len})
    allowed = aligned.allows(jnp.asarray(at, jnp.int32)[..., None, :, None], jnp.arange(kv_len)[None, None])
    return np.broadcast_to(np.asarray(allowed), (*batch, heads, q_len, kv_len))


def written_out(length, heads, allowed):
    """Booleans `[heads, length, length]`, from `allowed(head, query, key)` in Python."""
    pairs = [[[bool(allowed(h, i, j)) for j in range(length)] for i in range(length)] for h in range(heads)]
    return np.array(pairs, bool)


def attend(query, key, value, allowed):
    """Softmax attention, `[length, heads, dim]`; 0 where nothing is allowed; key heads repeated."""
    group = query.shape[-2] // key.shape[-2]
    key, value = np.repeat(key, group, -2), np.repeat(value, group, -2)
    scores = np.einsum("qhd,khd->hqk", query, key) / np.sqrt(query.shape[-1])
    scores = np.where(allowed, scores, -np.inf)
    top = scores.max(-1, keepdims=True, initial=-1e30)
    weights = np.where(allowed, np.exp(scores - top), 0)
    mass = weights.sum(-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", weights / np.where(mass == 0, 1, mass), value)

"""Both recurrences in float64 NumPy, token by token, and random inputs for them."""

import functools

import jax
import numpy as np

from jattn.ops.recurrence import delta_rule, linear_recurrence

KINDS = ("plain", "constant", "scalar", "channel", "bonus", "delta", "gated delta", "channel delta")
DELTA = ("delta", "gated delta", "channel delta")
EXTREME = np.log(np.array([1e-4, 1 - 1e-6, 1e-4, 0.5, 1.0, 1 - 1e-6, 0.99]))


def linear(query, key, value, log_decay=None, bonus=None, state=None, segments=None):
    """Of `[length, heads, dim]`; `log_decay [length, heads, k_dim]`. The outputs and the final state."""
    length, heads, k_dim = query.shape
    state = np.zeros((heads, k_dim, value.shape[-1])) if state is None else np.array(state)
    out = np.zeros(value.shape)
    for t in range(length):
        if segments is not None and t and segments[t] != segments[t - 1]:
            state = np.zeros_like(state)
        written = key[t][:, :, None] * value[t][:, None, :]
        before = state
        state = (state if log_decay is None else np.exp(log_decay[t])[:, :, None] * state) + written
        read = state if bonus is None else before + bonus[:, :, None] * written
        out[t] = (read * query[t][:, :, None]).sum(1)
    return out, state


def delta(query, key, value, beta, log_decay=None, state=None, segments=None):
    """Of `[length, heads, dim]`; `beta [length, heads]`, `log_decay` likewise or `[length, heads, k_dim]`."""
    length, heads, k_dim = query.shape
    state = np.zeros((heads, k_dim, value.shape[-1])) if state is None else np.array(state)
    out = np.zeros(value.shape)
    for t in range(length):
        if segments is not None and t and segments[t] != segments[t - 1]:
            state = np.zeros_like(state)
        for h in range(heads):
            k = key[t, h]
            decay = 1.0 if log_decay is None else np.exp(log_decay[t, h])
            kept = np.diag(np.broadcast_to(decay, k_dim)) @ state[h]
            forget = np.eye(k_dim) - beta[t, h] * np.outer(k, k)
            state[h] = forget @ kept + beta[t, h] * np.outer(k, value[t, h])
            out[t, h] = state[h].T @ query[t, h]
    return out, state


def pairs(query, key, value, log_decay=None, bonus=None, beta=None):
    """The parallel form of both: all pairs of tokens, each with the product of the gates between; no state, no chunks.

    Of `[length, heads, dim]`; `log_decay [length, heads]` or `[length, heads, k_dim]`, above -inf. The outputs.
    """
    length = query.shape[0]
    gates = np.zeros(key.shape) if log_decay is None else log_decay
    gates = np.broadcast_to(gates if gates.ndim == 3 else gates[..., None], key.shape)
    out = np.zeros(value.shape)
    for h in range(query.shape[1]):
        sums = np.cumsum(gates[:, h], 0)
        read = sums if bonus is None else sums - gates[:, h]
        kept = np.exp(np.minimum(read[:, None] - sums[None], 0))  # [i, j, k_dim]
        scores = np.tril(np.einsum("id,jd,ijd->ij", query[:, h], key[:, h], kept), -1)
        scores += np.diag((query[:, h] * key[:, h] * (1 if bonus is None else bonus[h])).sum(-1))
        values = value[:, h]
        if beta is not None:
            others = np.tril(np.einsum("id,jd,ijd->ij", key[:, h], key[:, h], kept), -1)
            values = np.linalg.solve(np.eye(length) + beta[:, h, None] * others, beta[:, h, None] * values)
        out[:, h] = scores @ values
    return out


def wide(*arrays):
    """In float64."""
    return [None if array is None else np.asarray(array, np.float64) for array in arrays]


def relative_error(ours, truth):
    """Root mean square of the difference by that of the truth."""
    ours, truth = np.asarray(ours, np.float64), np.asarray(truth, np.float64)
    assert ours.shape == truth.shape
    return np.sqrt(((ours - truth) ** 2).mean() / max((truth**2).mean(), 1e-30))


def inputs(kind, length, heads=2, k_dim=6, v_dim=5, seed=0, extreme=False):
    """Keyword arguments of the recurrence, without state and segments; float32."""
    rng = np.random.default_rng(seed)
    query, key = rng.normal(size=(2, length, heads, k_dim))
    found = {"query": query, "key": key / np.sqrt(k_dim), "value": rng.normal(size=(length, heads, v_dim))}
    gates = -np.abs(rng.normal(size=(length, heads, max(k_dim, 1))))
    if extreme:
        gates = rng.choice(EXTREME, size=gates.shape)
        gates = np.where(rng.random(gates.shape) < 0.02, -np.inf, gates)
    if kind in DELTA:
        found["key"] /= np.linalg.norm(found["key"], axis=-1, keepdims=True)
        found["beta"] = rng.uniform(0, 2, size=(length, heads))
    if kind == "constant":
        found["log_decay"] = np.log(1 - 2.0 ** (-5 - np.arange(heads)))
    elif kind in ("scalar", "gated delta"):
        found["log_decay"] = gates[..., 0]
    elif kind in ("channel", "bonus", "channel delta"):
        found["log_decay"] = gates[..., :k_dim]
    if kind == "bonus":
        found["bonus"] = rng.normal(size=(heads, k_dim))
    return {name: array.astype(np.float32) for name, array in found.items()}


def run(given, **options):
    return (delta_rule if "beta" in given else linear_recurrence)(**given, **options)


@functools.cache
def compiled(**options):
    """As `run` with these options, of arrays by name: a program that tests share, not one for every operation."""
    return jax.jit(lambda given, **arrays: run(given, **arrays, **options))


@functools.cache
def both_forms(chunk=None):
    """Of arrays by name: what the chunked form and the scan make of them."""
    chunks = {} if chunk is None else {"chunk": chunk}
    return jax.jit(lambda given: (run(given, implementation="chunked", **chunks), run(given, implementation="scan")))


def state_of(given, seed=5):
    shape = (*given["key"].shape[1:], given["value"].shape[-1])
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)

"""Scores of any finite size: shifting a row, however far, changes neither the softmax nor its gradient."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import rows

import jattn
from jattn import masks, scores
from jattn.normalizers import Softmax
from jattn.ops.attention.implementations import Tiled

LOWEST = float(np.finfo(np.float32).min)
Q_LEN, KV_LEN, HEADS = 6, 9, 2
CAUSAL = np.arange(KV_LEN) <= np.arange(KV_LEN - Q_LEN, KV_LEN)[:, None]
keys = np.arange(KV_LEN)

# What is added to the scores (a number for each key, or pair), and the sink.
ROWS = {
    "ordinary": (np.sin(keys), 0.5),
    "tiny": (1e-30 * keys, 1e-30),
    "all lower by 1e9": (np.full(KV_LEN, -1e9), -1e9),
    "all higher by 1e9": (np.full(KV_LEN, 1e9), 1e9),
    "all the lowest": (np.full(KV_LEN, LOWEST), LOWEST),
    "all 1e38": (np.full(KV_LEN, 1e38), 1e38),
    "neighbors of 1e9 in float32": (1e9 + 64.0 * (keys % 2), 1e9 + 64),
    "from -1e38 to 1e38": (np.linspace(-1e38, 1e38, KV_LEN), 0.0),
    "left padding of -1e9": (np.where(keys < 5, -1e9, 0), -2e9),
    "left padding of the lowest": (np.where(keys < 5, LOWEST, 0), LOWEST),
    "causal and padding of the lowest": (np.where(CAUSAL & (keys >= 5), 0, LOWEST), LOWEST),
    "a sink far above": (np.zeros(KV_LEN), 1e38),
    "a sink far below": (np.zeros(KV_LEN), LOWEST),
}
WHOLE, PARTS = (0, 9), (0, 4, 5, 9)
IMPLEMENTATIONS = {"reference": "reference", "tiled": Tiled(4, 4)}
TOLERANCE = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 2e-6, "float64": 1e-12}


def inputs(dtype: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Query, key, value, bias, sink (a batch element for each of the rows); the cotangents of out and lse."""
    rng = np.random.default_rng(0)
    rows = len(ROWS)
    query = rng.integers(-2, 3, (rows, Q_LEN, HEADS, 3))
    key = rng.integers(-2, 3, (rows, KV_LEN, 1, 3))
    value, d_out = (
        rng.integers(-64, 65, (rows, length, heads, 4)) / 64 for length, heads in ((KV_LEN, 1), (Q_LEN, HEADS))
    )
    bias = np.stack([np.broadcast_to(bias, (1, Q_LEN, KV_LEN)) for bias, _ in ROWS.values()])
    sink = np.array([[sink] * HEADS for _, sink in ROWS.values()])
    wide = np.float64 if dtype == "float64" else np.float32
    bias, sink = bias.astype(np.float32).astype(wide), sink.astype(np.float32).astype(wide)
    return [query, key, value, bias, sink], [d_out, rng.normal(size=(rows, Q_LEN, HEADS)).astype(wide)]


def truth(arrays: list[np.ndarray], cotangents: list[np.ndarray]) -> list[np.ndarray]:
    """Out, lse, and the gradients of all arrays, in float64, of the scores as they round."""
    wide = arrays[3].dtype
    query, key, value, bias, sink = (array.astype(np.float64) for array in arrays)
    d_out, d_lse = (array.astype(np.float64) for array in cotangents)
    score = (np.einsum("lqhd,lkd->lhqk", query, key[:, :, 0]).astype(wide) + bias.astype(wide)).astype(np.float64)
    score = np.where(CAUSAL, score, -np.inf)
    top = score.max(-1, keepdims=True)
    mass = np.exp(score - top)
    total = mass.sum(-1, keepdims=True)
    high = np.maximum(top, sink[:, :, None, None])
    with_sink = np.exp(score - high)
    with_sink = with_sink / (with_sink.sum(-1, keepdims=True) + np.exp(sink[:, :, None, None] - high))
    d_weight = np.einsum("lqhv,lkv->lhqk", d_out, value[:, :, 0])
    along = (with_sink * d_weight).sum(-1, keepdims=True)
    d_score = with_sink * (d_weight - along) + mass / total * np.moveaxis(d_lse, 1, 2)[..., None]
    return [
        np.einsum("lhqk,lkv->lqhv", with_sink, value[:, :, 0]),
        np.moveaxis((top + np.log(total))[..., 0], 1, 2),
        np.einsum("lhqk,lkd->lqhd", d_score, key[:, :, 0]),
        np.einsum("lhqk,lqhd->lkd", d_score, query)[:, :, None],
        np.einsum("lhqk,lqhv->lkv", with_sink, d_out)[:, :, None],
        d_score.sum(1, keepdims=True),
        -((1 - with_sink.sum(-1, keepdims=True)) * along)[..., 0].sum(-1),
    ]


def run(implementation, split, query, key, value, bias, sink):
    """Out and lse of a call in parts; without a split, of the front door, whose lse is that of a second call."""
    positions = np.arange(KV_LEN)
    given: dict[str, Any] = {"similarity": jattn.similarities.Dot(), "implementation": implementation}
    given |= {"mask": masks.Causal(), "query_positions": positions[-Q_LEN:]}
    parts = [
        jattn.partial_attention(
            query,
            key[:, start:stop],
            value[:, start:stop],
            scores=scores.Bias(bias[..., start:stop]),
            key_positions=positions[start:stop],
            **given,
        )
        for start, stop in itertools.pairwise(split)
    ]
    if len(parts) == 1:
        out = jattn.attention(query, key, value, scores=scores.Bias(bias), normalizer=Softmax(sink), **given)
        return out, parts[0].lse
    merged = jattn.merge(*parts)
    return Softmax(sink).rescale(merged.out, merged.lse, merged.remainder), merged.lse


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", rows(TOLERANCE, ["float32"]))
@pytest.mark.parametrize("name", rows(IMPLEMENTATIONS, ["tiled"]))
def test_scores_of_any_size(name, dtype):
    arrays, cotangents = inputs(dtype)
    wanted = truth(arrays, cotangents)
    splits = (WHOLE, PARTS) if dtype == "float32" else (WHOLE,)
    with jax.enable_x64(dtype == "float64"):
        arrays = [jnp.asarray(array, dtype if i < 3 else None) for i, array in enumerate(arrays)]

        @jax.jit
        def everything(*arrays):
            results = []
            for split in splits:
                (out, lse), pull = jax.vjp(lambda *a, split=split: run(IMPLEMENTATIONS[name], split, *a), *arrays)
                pulled = pull((jnp.asarray(cotangents[0], out.dtype), jnp.asarray(cotangents[1])))
                results.append((out, lse, *pulled))
            return results

        every = everything(*arrays)
    labels = ("out", "lse", "d_query", "d_key", "d_value", "d_bias", "d_sink")
    for split, got in zip(splits, every, strict=True):
        for label, have, want in zip(labels, got, wanted, strict=True):
            for row, one, right in zip(ROWS, np.asarray(have).astype(np.float64), want, strict=True):
                largest = max(1.0, np.abs(right).max())
                error = np.abs(one - right).max() / largest
                assert error <= TOLERANCE[dtype], f"{row}: {label} in parts {split}: {error}"

"""Softmax and its sink."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, close, normal

import jattn
from jattn.foundation.pieces import align
from jattn.normalizers import Softmax
from jattn.ops.attention.implementations import Tiled
from jattn.scores import Bias

HEADS, ROWS, KEYS = 2, 4, 5
ALLOWED: Any = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 1, 0]], bool)


def aligned(normalizer, batch=()):
    return align(normalizer, batch, {"head": HEADS, "query": ROWS, "key": KEYS})


def softmax(scores, sink=None, allowed=ALLOWED):
    scores = np.where(allowed, scores, -np.inf)
    top = np.maximum(scores.max(-1, keepdims=True), -1e30 if sink is None else sink[:, None, None])
    mass = np.exp(scores - top)
    total = mass.sum(-1, keepdims=True) + (0 if sink is None else np.exp(sink[:, None, None] - top))
    return np.divide(mass, total, out=np.zeros_like(mass), where=total > 0)


def test_weights():
    (s,) = normal(0, (HEADS, ROWS, KEYS))
    check(lambda s: Softmax().weights(s, ALLOWED), softmax, s)


def test_weights_with_a_sink_of_each_head():
    s, sink = normal(1, (HEADS, ROWS, KEYS), (HEADS,))
    check(lambda s, sink: aligned(Softmax(sink)).weights(s, ALLOWED), softmax, s, sink)


def test_off_by_one_is_a_sink_of_0():
    (s,) = normal(2, (HEADS, ROWS, KEYS))
    ours = aligned(Softmax.off_by_one()).weights(s, ALLOWED)
    close(ours, np.where(ALLOWED, np.exp(s), 0) / (1 + np.where(ALLOWED, np.exp(s), 0).sum(-1, keepdims=True)), 1e-6)
    assert (np.asarray(ours).sum(-1) < 1).all()


@pytest.mark.parametrize("normalizer", [Softmax(), Softmax.off_by_one()], ids=["plain", "sink"])
@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf, 1e38])
def test_what_is_masked_reaches_neither_weights_nor_gradients(normalizer, hole):
    (s,) = normal(3, (HEADS, ROWS, KEYS))
    one = aligned(normalizer)
    clean, pull_clean = jax.vjp(lambda s: one.weights(s, ALLOWED), s)
    broken, pull = jax.vjp(lambda s: one.weights(s, ALLOWED), jnp.where(ALLOWED, s, hole))
    np.testing.assert_array_equal(clean, broken)
    np.testing.assert_array_equal(pull(jnp.ones_like(clean))[0], pull_clean(jnp.ones_like(clean))[0])
    assert not np.asarray(clean)[:, 2].any() and not np.asarray(clean)[:, ~ALLOWED].any()


@pytest.mark.parametrize("sink", [None, np.zeros(HEADS, np.float32)], ids=["plain", "sink"])
def test_rows_of_minus_infinity_are_empty(sink):
    s = jnp.full((HEADS, ROWS, KEYS), -jnp.inf)
    value, pull = jax.vjp(lambda s: aligned(Softmax(sink)).weights(s, ALLOWED), s)
    assert not np.asarray(value).any() and not np.asarray(pull(jnp.ones_like(value))[0]).any()


def test_large_scores_do_not_overflow():
    s, sink = np.full((HEADS, ROWS, KEYS), 1e4, np.float32), np.array([1e4, -1e4], np.float32)
    close(aligned(Softmax(sink)).weights(s, ALLOWED), softmax(s.astype(float), sink.astype(float)), 1e-6)
    close(aligned(Softmax(np.array([1e4], np.float32))).weights(0 * s, ALLOWED), np.zeros_like(s), 1e-6)


def attend(q, k, v, sink):
    scores = np.einsum("qhd,khd->hqk", q, np.repeat(k, 2, 1)) / np.sqrt(q.shape[-1])
    return np.einsum("hqk,khd->qhd", softmax(scores, sink, np.tri(*scores.shape[1:], dtype=bool)), np.repeat(v, 2, 1))


@pytest.mark.parametrize(
    "implementation",
    [Tiled(3, 2), *(pytest.param(one, marks=pytest.mark.exhaustive) for one in ("reference", Tiled(6, 6)))],
    ids=["3x2", "reference", "6x6"],
)
def test_a_sink_counts_once_a_row_and_is_learned(implementation):
    q, k, v, sink = normal(4, (6, 4, 3), (6, 2, 3), (6, 2, 2), (4,))

    def ours(q, k, v, sink):
        return jattn.attention(
            q, k, v, normalizer=Softmax(sink), mask=jattn.masks.Causal(), implementation=implementation
        )

    check(ours, attend, q, k, v, sink)


@pytest.mark.parametrize(
    "implementation", [pytest.param("reference", marks=pytest.mark.exhaustive), Tiled(3, 2)], ids=["reference", "tiled"]
)
def test_empty_rows_with_a_sink_are_0_with_finite_gradients(implementation):
    q, k, v, sink = normal(5, (6, 2, 3), (6, 2, 3), (6, 2, 2), (2,))
    bias = np.zeros((1, 6, 1), np.float32)
    bias[:, 1] = -np.inf  # row 1 has no score left, rows 0 and 5 no key

    def run(q, k, v, sink, bias):
        mask = jattn.masks.of(lambda q, k: (q > 0) & (q < 5) & (k <= q))
        return jattn.attention(
            q, k, v, normalizer=Softmax(sink), scores=Bias(bias), mask=mask, implementation=implementation
        )

    out, pull = jax.vjp(run, q, k, v, sink, bias)
    assert not np.asarray(out)[[0, 1, 5]].any() and np.asarray(out)[2].any()
    gradients = pull(jnp.ones_like(out))
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert not np.asarray(gradients[0])[[0, 1, 5]].any()


def test_finish_of_merged_partials_is_the_sink_over_all_keys():
    q, k, v, sink = normal(6, (1, 6, 2, 3), (1, 8, 2, 3), (1, 8, 2, 2), (2,))
    parts = [jattn.partial_attention(q, k[:, s], v[:, s]) for s in (slice(0, 3), slice(3, 8))]
    merged = jattn.merge(*parts)
    close(Softmax(sink).rescale(merged.out, merged.lse), jattn.attention(q, k, v, normalizer=Softmax(sink)), 1e-6)
    per_query = Softmax(query_sink=jnp.arange(12.0).reshape(1, 2, 6) / 6)
    close(per_query.rescale(merged.out, merged.lse), jattn.attention(q, k, v, normalizer=per_query), 1e-6)
    assert Softmax().mergeable and not Softmax(sink).mergeable and not per_query.mergeable
    with pytest.raises(ValueError, match="merge"):
        jattn.partial_attention(q, k, v, normalizer=Softmax(sink))


def test_a_sink_in_bfloat16_has_a_gradient_in_bfloat16():
    q, k, v, sink = (jnp.asarray(x, jnp.bfloat16) for x in normal(7, (6, 4, 3), (6, 2, 3), (6, 2, 2), (4,)))

    def ours(q, k, v, sink):
        return jattn.attention(q, k, v, normalizer=Softmax(sink), mask=jattn.masks.Causal())

    out, pull = jax.vjp(ours, q, k, v, sink)
    assert out.dtype == jnp.bfloat16 and all(gradient.dtype == jnp.bfloat16 for gradient in pull(out))
    close(out.astype(jnp.float32), attend(*(np.asarray(x, np.float64) for x in (q, k, v, sink))), 0.01)


@pytest.mark.parametrize("sink", ["0", True, np.ones(2, int)])
def test_a_sink_must_be_floating_point(sink):
    with pytest.raises(ValueError, match="`sink` must be a floating-point array"):
        Softmax(sink)


def test_a_sink_must_fit_the_heads():
    q = jnp.ones((3, 2, 4))
    with pytest.raises(ValueError, match="head axis"):
        jattn.attention(q, q, q, normalizer=Softmax(np.zeros(3, np.float32)))


def test_a_query_has_one_sink_and_says_which():
    one = np.zeros((2, 6), np.float32)
    with pytest.raises(ValueError, match="exclude each other"):
        Softmax(one[:, 0], one)
    with pytest.raises(ValueError, match="`query_sink` must be a floating-point array"):
        Softmax(query_sink=one[0])
    q = jnp.ones((5, 2, 4))
    with pytest.raises(ValueError, match=r"`Softmax.query_sink` of shape \(2, 6\) has size 6 on its query axis"):
        jattn.attention(q, q, q, normalizer=Softmax(query_sink=one))

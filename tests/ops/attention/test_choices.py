"""Identities of similarities, and combinations of masks, as stated in their docstrings."""

import math

import numpy as np
import pytest
from differences import close, normal, summed

import jattn
from jattn import masks, normalizers, similarities
from jattn.ops.attention.call import Pieces, prepare
from jattn.ops.attention.implementations import Tiled
from jattn.ops.attention.plan import make_plan

BOTH = pytest.mark.parametrize("implementation", ["reference", Tiled(4, 4)], ids=["reference", "tiled"])
PLACES = np.arange(24)
Q, K = PLACES[:, None], PLACES
BLOCKED = masks.of(lambda q, k: abs(q // 3 - k // 3) <= 1)
SINKS = masks.Causal() & (masks.SlidingWindow(2, 0) | masks.Sinks(2))


def dense(mask, q, k, v):
    given = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
    mass = np.where(mask, np.exp(given), 0)
    return np.einsum("hqk,khd->qhd", mass / mass.sum(-1, keepdims=True), v)


@BOTH
@pytest.mark.parametrize(
    ("mask", "allowed"),
    [(BLOCKED, np.abs(Q // 3 - K // 3) <= 1), (SINKS, (K <= Q) & ((Q - K <= 2) | (K < 2)))],
    ids=["blocked local", "sinks and window"],
)
def test_masks_made_of_others_equal_their_formula_and_skip(mask, allowed, implementation):
    q, k, v = normal(0, (24, 2, 4), (24, 2, 4), (24, 2, 3))
    out = jattn.attention(q, k, v, mask=mask, implementation=implementation)
    close(out, dense(allowed, *(x.astype(float) for x in (q, k, v))), 1e-5)
    plan = make_plan(mask, PLACES[None, :, None].astype(np.int32), PLACES[None, None].astype(np.int32), 3, 3)
    wanted = allowed.reshape(8, 3, 8, 3)
    np.testing.assert_array_equal(np.asarray(plan.states)[0] != 0, wanted.any((1, 3)))


@BOTH
def test_a_query_far_along_the_nearest_key(implementation):
    """γ → ∞ is the nearest key, where nothing can be learned of q and k any more."""
    q, k, v = normal(1, (6, 1, 3), (8, 1, 3), (8, 1, 2))
    out, *gradients = summed(
        lambda q, k: jattn.attention(q, k, v, similarity=similarities.Gaussian(3e3), implementation=implementation),
        q,
        k,
    )
    nearest = ((q[:, None, 0] - k[None, :, 0]) ** 2).sum(-1).argmin(-1)
    close(out, v[nearest], 1e-5)
    assert all(np.abs(one).max() < 1e-3 for one in gradients)


def test_the_scaled_dot_product_has_variance_1():
    for dim in (4, 64, 256):
        q, k = normal(dim, (200, 1, dim), (200, 1, dim))
        call, q, k = prepare(q, k, k, Pieces())
        assert np.var(np.einsum("qhd,khd->qk", q, k) * call.scale) == pytest.approx(1, abs=0.1)


def test_sigmoid_attention_begins_with_rows_that_sum_to_about_1():
    q, k = normal(2, (1000, 1, 64), (1000, 1, 64), spread=0.5)
    bias = -math.log(1000)
    weights = jattn.attention_weights(q, k, normalizer=normalizers.Sigmoid(bias))
    sums = np.asarray(weights).sum(-1)
    assert sums.min() > 0.9 and sums.max() < 1.2
    assert np.asarray(jattn.attention_weights(q, k, normalizer=normalizers.Sigmoid())).sum(-1).min() > 400


def test_an_off_by_one_softmax_is_a_key_of_score_0_without_value():
    q, k, v = normal(3, (5, 2, 4), (7, 2, 4), (7, 2, 3))
    zero = lambda x: np.concatenate([x, np.zeros((1, *x.shape[1:]), x.dtype)])  # noqa: E731
    ours = jattn.attention(q, k, v, normalizer=normalizers.Softmax.off_by_one())
    close(ours, jattn.attention(q, zero(k), zero(v)), 1e-6)

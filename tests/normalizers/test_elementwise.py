"""Sigmoid and ReLU attention."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, close, normal, summed

import jattn
from jattn.normalizers import ReLU, Sigmoid
from jattn.ops.attention.implementations import Tiled

ALLOWED: Any = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 1, 0]], bool)
IMPLEMENTATIONS = pytest.mark.parametrize(
    "implementation", [pytest.param("reference", marks=pytest.mark.exhaustive), Tiled(3, 2)], ids=["reference", "tiled"]
)
BOTH = pytest.mark.parametrize("normalizer", [Sigmoid(), ReLU(), ReLU(0.5)], ids=repr)


def sigmoid(scores, bias, allowed):
    return np.where(allowed, 1 / (1 + np.exp(-(scores + bias))), 0)


def relu(scores, power, allowed):
    count = np.maximum(np.broadcast_to(allowed, scores.shape).sum(-1, keepdims=True), 1)
    return np.where(allowed, np.maximum(scores, 0), 0) / count**power


def scores_of(q, k):
    return np.einsum("qhd,khd->hqk", q, np.repeat(k, 2, 1)) / np.sqrt(q.shape[-1])


def attend(weights, v):
    return np.einsum("hqk,khd->qhd", weights, np.repeat(v, 2, 1))


def test_weights():
    (s,) = normal(0, (2, 4, 5))
    check(lambda s: Sigmoid().weights(s, ALLOWED), lambda s: sigmoid(s, 0, ALLOWED), s)
    for power in (0, 0.5, 1.0):
        check(lambda s, power=power: ReLU(power).weights(s, ALLOWED), lambda s, p=power: relu(s, p, ALLOWED), s)


@BOTH
@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
def test_what_is_masked_reaches_neither_weights_nor_gradients(normalizer, hole):
    (s,) = normal(1, (2, 4, 5))
    clean, pull_clean = jax.vjp(lambda s: normalizer.weights(s, ALLOWED), s)
    broken, pull = jax.vjp(lambda s: normalizer.weights(s, ALLOWED), jnp.where(ALLOWED, s, hole))
    np.testing.assert_array_equal(clean, broken)
    np.testing.assert_array_equal(pull(jnp.ones_like(clean))[0], pull_clean(jnp.ones_like(clean))[0])
    assert not np.asarray(clean)[:, ~ALLOWED].any()


@BOTH
def test_scores_of_minus_infinity_have_weight_0(normalizer):
    value, pull = jax.vjp(lambda s: normalizer.weights(s, ALLOWED), jnp.full((2, 4, 5), -jnp.inf))
    assert not np.asarray(value).any() and not np.asarray(pull(jnp.ones_like(value))[0]).any()


@IMPLEMENTATIONS
def test_sigmoid_attention_learns_its_bias(implementation):
    q, k, v, bias = normal(2, (6, 4, 3), (6, 2, 3), (6, 2, 2), (4,))
    causal = np.tri(6, dtype=bool)

    def ours(q, k, v, bias):
        return jattn.attention(
            q, k, v, normalizer=Sigmoid(bias), mask=jattn.masks.Causal(), implementation=implementation
        )

    check(ours, lambda q, k, v, b: attend(sigmoid(scores_of(q, k), b[:, None, None], causal), v), q, k, v, bias)
    static = attend(sigmoid(scores_of(*(x.astype(float) for x in (q, k))), -np.log(6), causal), v)
    close(ours(q, k, v, -float(np.log(6))), static, 1e-5)


def test_a_bias_of_each_head_is_not_taken_for_one_of_each_batch_element():
    q, k, v, bias = normal(3, (2, 4, 2, 3), (2, 4, 2, 3), (2, 4, 2, 3), (2,))
    out = jattn.attention(q, k, v, normalizer=Sigmoid(bias))
    for head in range(2):
        one = slice(head, head + 1)
        alone = jattn.attention(q[:, :, one], k[:, :, one], v[:, :, one], normalizer=Sigmoid(float(bias[head])))
        close(out[:, :, one], alone, 1e-6)


@IMPLEMENTATIONS
@pytest.mark.parametrize("power", [0.5, 1.0])
def test_relu_attention_divides_by_the_keys_of_each_row(implementation, power):
    q, k, v = normal(4, (6, 4, 3), (6, 2, 3), (6, 2, 2))
    causal = np.tri(6, dtype=bool)

    def ours(q, k, v):
        return jattn.attention(
            q, k, v, normalizer=ReLU(power), mask=jattn.masks.Causal(), implementation=implementation
        )

    check(ours, lambda q, k, v: attend(relu(scores_of(q, k), power, causal), v), q, k, v)


@IMPLEMENTATIONS
@BOTH
def test_empty_rows_are_0_with_zero_gradients(normalizer, implementation):
    q, k, v = normal(5, (6, 2, 3), (6, 2, 3), (6, 2, 2))

    def run(q, k, v):
        mask = jattn.masks.of(lambda q, k: (q > 1) & (k <= q))
        return jattn.attention(q, k, v, normalizer=normalizer, mask=mask, implementation=implementation)

    out, *gradients = summed(run, q, k, v)
    assert not np.asarray(out)[:2].any()
    assert all(np.isfinite(gradient).all() for gradient in gradients) and not np.asarray(gradients[0])[:2].any()


@BOTH
def test_bfloat16(normalizer):
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in normal(6, (6, 4, 3), (6, 2, 3), (6, 2, 2)))
    out, pull = jax.vjp(lambda q, k, v: jattn.attention(q, k, v, normalizer=normalizer), q, k, v)
    assert out.dtype == jnp.bfloat16 and all(gradient.dtype == jnp.bfloat16 for gradient in pull(out))
    wide = [np.asarray(x, np.float64) for x in (q, k, v)]
    everyone = np.ones((6, 6), bool)
    scores = scores_of(*wide[:2])
    weights = (
        sigmoid(scores, 0, everyone) if isinstance(normalizer, Sigmoid) else relu(scores, normalizer.power, everyone)
    )
    close(out.astype(jnp.float32), attend(weights, wide[2]), 0.01)


@pytest.mark.parametrize("power", [-1, np.inf, np.nan, "1", True, None])
def test_the_power_must_be_a_number_of_at_least_0(power):
    with pytest.raises(ValueError, match="`power` must be a Python number of at least 0"):
        ReLU(power)


@pytest.mark.parametrize("bias", [np.inf, "0", None, True, np.ones(2, int)])
def test_the_bias_must_be_a_number(bias):
    with pytest.raises(ValueError, match="`bias` must be a"):
        Sigmoid(bias)


def test_partial_results_do_not_merge():
    q = jnp.ones((3, 2, 4))
    with pytest.raises(ValueError, match="merge"):
        jattn.partial_attention(q, q, q, normalizer=Sigmoid())

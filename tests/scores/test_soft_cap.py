"""The soft cap, and its derivative 1 - tanh²."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, close, normal
from tiers import rows

import jattn
from jattn.foundation.pieces import align
from jattn.scores import Bias, SoftCap

HERE, THERE = jnp.zeros((3, 1), int), jnp.arange(4)


def modified(score, scores):
    return align(score, (2,), {"head": 2, "query": 3, "key": 4}).modify(scores, HERE, THERE)


@pytest.mark.parametrize("shape", [(), (2,)])
def test_a_cap_is_a_tanh(shape):
    s, cap = normal(0, (2, 2, 3, 4), shape, spread=3.0)
    cap = np.abs(np.asarray(cap, np.float32)) + 0.5
    wide = lambda cap: np.broadcast_to(cap, (2,))[:, None, None]  # noqa: E731
    check(lambda s, c: modified(SoftCap(c), s), lambda s, c: wide(c) * np.tanh(s / wide(c)), s, cap)
    check(lambda s: modified(SoftCap(2), s), lambda s: 2 * np.tanh(s / 2), s)


def test_the_derivative_is_1_minus_tanh_squared():
    s = jnp.linspace(-8, 8, 48).reshape(2, 2, 3, 4)
    gradient = jax.grad(lambda s: modified(SoftCap(1.5), s).sum())(s)
    close(gradient, 1 - np.tanh(np.asarray(s, float) / 1.5) ** 2, 1e-6)


@pytest.mark.parametrize("implementation", rows(["reference", "tiled"], ["tiled"]))
def test_gradients_through_attention_have_that_factor(implementation):
    q, k, v, cap = normal(1, (5, 2, 3), (5, 2, 3), (5, 2, 3), (2,), spread=3.0)
    cap = np.abs(cap) + 1

    def truth(q, k, v, cap):
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(3)
        weights = np.exp(cap[:, None, None] * np.tanh(scores / cap[:, None, None]))
        return np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v)

    check(
        lambda q, k, v, cap: jattn.attention(q, k, v, scores=SoftCap(cap), implementation=implementation),
        truth,
        q,
        k,
        v,
        cap,
    )


@pytest.mark.parametrize("cap", [0.3, 5.0])
def test_infinite_scores_are_capped_without_nan(cap):
    s = jnp.broadcast_to(jnp.array([jnp.inf, -jnp.inf, 1e38, 0.0]), (2, 2, 3, 4))
    value, pull = jax.vjp(lambda s, c: modified(SoftCap(c), s), s, jnp.array([cap, cap]))
    close(np.asarray(value)[0, 0, 0], np.array([cap, -cap, cap, 0]), 1e-6)
    d_scores, d_cap = pull(jnp.ones_like(value))
    assert np.isfinite(d_scores).all()
    close(d_cap, np.full(2, 2 * 3 * (1 - 1 + 1.0)), 1e-6)


def test_order_counts():
    q, k = normal(2, (3, 1, 4), (3, 1, 4))
    bias = Bias(np.array([[[0, -np.inf, 0]]], np.float32))
    assert (jattn.attention_weights(q, k, scores=[SoftCap(1.0), bias])[..., 1] == 0).all()
    assert (jattn.attention_weights(q, k, scores=[bias, SoftCap(1.0)])[..., 1] > 0).all()


def test_nan_stays_nan():
    assert np.isnan(modified(SoftCap(1.0), jnp.full((2, 2, 3, 4), jnp.nan))).all()


@pytest.mark.parametrize("cap", [0, -1.0, np.array([1.0, 0.0], np.float32), np.nan, np.inf, "1", True, None])
def test_a_cap_must_be_above_0(cap):
    with pytest.raises(ValueError, match="`cap` must be a number above 0"):
        SoftCap(cap)

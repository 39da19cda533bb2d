"""Sparsemax and 1.5-entmax, against thresholds found by bisection."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, close, normal, summed

import jattn
from jattn.normalizers import Entmax15, Sparsemax

ALLOWED: Any = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 1, 0]], bool)
KINDS = [Sparsemax(), Entmax15()]
BOTH = pytest.mark.parametrize("normalizer", KINDS, ids=["sparsemax", "entmax15"])
ONE = pytest.mark.parametrize(
    "normalizer", [pytest.param(KINDS[0], marks=pytest.mark.exhaustive), KINDS[1]], ids=["sparsemax", "entmax15"]
)


def by_bisection(scores, allowed, power):
    """max(scores * factor - tau, 0)^power, rows of sum 1; factor and power as in the definitions."""
    scores = np.where(allowed, scores, -np.inf) * (1.0 if power == 1 else 0.5)
    out = np.zeros(scores.shape)
    for row in np.ndindex(scores.shape[:-1]):
        line = scores[row]
        if not np.isfinite(line.max()):
            continue
        low, high = line.max() - 1, line.max()
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if (np.maximum(line - middle, 0) ** power).sum() > 1 else (low, middle)
        out[row] = np.maximum(line - low, 0) ** power
    return out


def power_of(normalizer):
    return 1 if isinstance(normalizer, Sparsemax) else 2


@BOTH
@pytest.mark.parametrize("spread", [0.1, *(pytest.param(one, marks=pytest.mark.exhaustive) for one in (1.0, 10.0))])
def test_weights_and_gradients(normalizer, spread):
    (s,) = normal(0, (3, 4, 5), spread=spread)
    check(
        lambda s: normalizer.weights(s, jnp.asarray(ALLOWED)),
        lambda s: by_bisection(s, ALLOWED, power_of(normalizer)),
        s,
        tolerance=2e-5,
    )


@BOTH
def test_long_rows_sum_to_1_and_are_sparse(normalizer):
    (s,) = normal(1, (2, 200), spread=2.0)
    weights = np.asarray(normalizer.weights(s, jnp.ones((2, 200), bool)))
    close(weights, by_bisection(s.astype(float), True, power_of(normalizer)), 1e-5)
    close(weights.sum(-1), np.ones(2), 1e-5)
    assert (weights == 0).mean() > 0.8


@BOTH
def test_known_rows(normalizer):
    everyone = jnp.ones((1, 3), bool)
    close(normalizer.weights(jnp.array([[2.0, 2.0, 2.0]]), everyone), np.full((1, 3), 1 / 3), 1e-6)
    np.testing.assert_array_equal(normalizer.weights(jnp.array([[9.0, 0.0, -3.0]]), everyone), [[1, 0, 0]])
    close(normalizer.weights(jnp.array([[1e6, 1e6, 0.0]]), everyone), np.array([[0.5, 0.5, 0]]), 1e-6)
    close(Sparsemax().weights(jnp.array([[0.5, 0.0, -5.0]]), everyone), np.array([[0.75, 0.25, 0]]), 1e-6)


@BOTH
def test_what_is_masked_is_exactly_0_and_reaches_nothing(normalizer):
    (s,) = normal(2, (3, 4, 5))

    @jax.jit
    def squared(s):
        out, pull = jax.vjp(lambda s: normalizer.weights(s, ALLOWED), s)
        return out, pull(out)[0]

    clean, gradient = squared(s)
    assert not np.asarray(clean)[:, ~ALLOWED].any()
    for hole in (np.nan, np.inf, -np.inf, 1e30):
        broken, other = squared(np.where(ALLOWED, s, np.float32(hole)))
        np.testing.assert_array_equal(clean, broken)
        np.testing.assert_array_equal(gradient, other)


@BOTH
def test_rows_of_minus_infinity_are_empty(normalizer):
    value, gradient = summed(lambda s: normalizer.weights(s, ALLOWED), np.full((3, 4, 5), -np.inf, np.float32))
    assert not np.asarray(value).any() and not np.asarray(gradient).any()

    @jax.jit
    def squared(s):
        out, pull = jax.vjp(lambda s: normalizer.weights(s, np.ones((1, 3), bool)), s)
        return out, pull(out)[0]

    value, gradient = squared(np.float32([[1.0, -np.inf, 1.2]]))
    assert np.asarray(value)[0, 1] == 0 and np.isfinite(gradient).all()


@BOTH
def test_nan_that_may_be_attended_is_not_hidden(normalizer):
    weights = np.asarray(normalizer.weights(jnp.array([[jnp.nan, 0.0, 1.0]]), jnp.array([[True, True, False]])))
    assert np.isnan(weights[0, :2]).all() and weights[0, 2] == 0


@BOTH
def test_forward_mode_and_second_derivatives(normalizer):
    (s, direction) = normal(3, (6,), (6,))
    everyone = jnp.ones(6, bool)

    def f(s):
        return (normalizer.weights(s, everyone) ** 2 * jnp.arange(6.0)).sum()

    def truth(s):
        return (by_bisection(s[None], True, power_of(normalizer))[0] ** 2 * np.arange(6)).sum()

    @jax.jit
    def derivatives(s):
        return jax.jvp(f, (s,), (direction,))[1], jax.grad(f)(s), jax.hessian(f)(s)

    forward, gradient, hessian = derivatives(s)
    assert abs(float(forward) - float(gradient @ direction)) < 1e-5
    step = 1e-3
    wide, eye = s.astype(float), np.eye(6) * step
    numeric = [
        [(truth(wide + a + b) - truth(wide + a - b) - truth(wide - a + b) + truth(wide - a - b)) for a in eye]
        for b in eye
    ]
    close(hessian, np.array(numeric) / (4 * step**2), 1e-3)


@ONE
def test_attention_with_gradients_everywhere(normalizer):
    q, k, v = normal(4, (5, 4, 3), (5, 2, 3), (5, 2, 2))
    causal = np.tri(5, dtype=bool)

    def truth(q, k, v):
        scores = np.einsum("qhd,khd->hqk", q, np.repeat(k, 2, 1)) / np.sqrt(3)
        return np.einsum("hqk,khd->qhd", by_bisection(scores, causal, power_of(normalizer)), np.repeat(v, 2, 1))

    def ours(q, k, v):
        return jattn.attention(q, k, v, normalizer=normalizer, mask=jattn.masks.Causal())

    check(ours, truth, q, k, v, tolerance=2e-5)
    assert jattn.explain(q, k, v, normalizer=normalizer).implementation == "reference"


@BOTH
def test_streaming_implementations_refuse_with_the_reason(normalizer):
    q = jnp.ones((3, 2, 4))
    with pytest.raises(jattn.Unsupported, match="sorting"):
        jattn.attention(q, q, q, normalizer=normalizer, implementation="tiled")


@ONE
def test_bfloat16_and_no_keys(normalizer):
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in normal(5, (3, 2, 4), (3, 2, 4), (3, 2, 4)))

    @jax.jit
    def run(*arrays):
        out, pull = jax.vjp(lambda q, k, v: jattn.attention(q, k, v, normalizer=normalizer), *arrays)
        return out, *pull(out)

    assert all(one.dtype == jnp.bfloat16 for one in run(q, k, v))
    assert not np.asarray(jattn.attention(q, k[:0], v[:0], normalizer=normalizer), np.float32).any()

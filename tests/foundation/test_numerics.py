"""Sums in log space equal their definition, with weights of 0, without terms, and with numbers that overflow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.foundation.numerics import (
    accumulation_dtype,
    log_sum_exp,
    seen_so_far,
    shifted_exp,
    softmax_or_zero,
    split_nonfinite_rows,
    unit,
)

TERMS = np.float32([[1.0, -2.0, 0.5], [900.0, 899.0, -np.inf], [-np.inf] * 3, [-900.0, -901.0, -902.0]])


def definition(terms):
    """log Σ exp and the weights, in float64 and without a shift that could hide a mistake."""
    weights = np.exp(terms.astype(np.longdouble))
    total = weights.sum(-1)
    with np.errstate(divide="ignore"):
        return np.log(total), weights / np.where(total == 0, 1, total)[:, None]


def test_sums_in_log_space_and_their_gradients():
    def both(terms):
        return log_sum_exp(terms), softmax_or_zero(terms)

    @jax.jit
    def run(terms):
        first = jax.grad(lambda terms: jnp.where(jnp.isinf(both(terms)[0]), 0, both(terms)[0]).sum())
        return *both(terms), first(terms), jax.grad(lambda terms: (first(terms) ** 2).sum())(terms)

    lse, weights, first, second = map(np.asarray, run(TERMS))
    want_lse, want = definition(TERMS)
    np.testing.assert_allclose(lse, want_lse.astype(float), rtol=1e-6)
    np.testing.assert_allclose(weights, want.astype(float), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(first, want.astype(float), rtol=1e-6, atol=1e-7)
    assert np.isfinite(second).all() and not second[2].any()


def test_no_terms():
    assert log_sum_exp(jnp.zeros((2, 0))).tolist() == [-np.inf, -np.inf]
    assert softmax_or_zero(jnp.zeros((2, 0))).shape == (2, 0)


def test_a_term_that_is_only_compared():
    """As a sink: the largest is the sink where it is above all terms, and nothing overflows."""
    top, weights = shifted_exp(TERMS, least=np.float32([[0.0], [950.0], [3.0], [0.0]]))
    assert top[:, 0].tolist() == [1.0, 950.0, 3.0, 0.0]
    assert np.isfinite(weights).all() and weights[2].tolist() == [0.0] * 3


@pytest.mark.parametrize("axis", [0, 1, (0, 1)])
def test_axes(axis):
    terms = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    want = np.exp(terms) / np.exp(terms).sum(axis, keepdims=True)
    np.testing.assert_allclose(softmax_or_zero(terms, axis), want, rtol=1e-5)


def test_dtypes_of_sums():
    half, single = jnp.ones(2, jnp.bfloat16), np.ones(2, np.float32)
    assert accumulation_dtype(half) == accumulation_dtype(half, single) == accumulation_dtype("float16") == np.float32
    with jax.enable_x64(True):
        assert accumulation_dtype(half, np.ones(2)) == np.float64


def test_unit_vectors_of_any_size():
    vectors = np.float32([[3e30, 4e30], [3e-30, 4e-30], [0.0, 0.0]])
    out, gradient = jax.jit(jax.value_and_grad(lambda x: unit(x)[:, 0].sum(), has_aux=False))(vectors)
    np.testing.assert_allclose(unit(vectors), [[0.6, 0.8], [0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    assert np.isfinite(out) and not np.asarray(gradient)[2].any()


def test_what_is_not_finite_is_set_aside():
    rows = np.float32([[1.0, np.nan], [2.0, 3.0], [np.inf, 0.0]])
    clean, nonfinite = split_nonfinite_rows(rows)
    assert clean.tolist() == [[0.0, 0.0], [2.0, 3.0], [0.0, 0.0]] and nonfinite.tolist() == [True, False, True]
    gradient = jax.grad(lambda x: split_nonfinite_rows(x)[0].sum())(rows)
    assert gradient.tolist() == [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    assert seen_so_far(nonfinite[None, ::-1, None])[0, :, 0].tolist() == [True, True, True]
    assert seen_so_far(~nonfinite[None, :, None])[0, :, 0].tolist() == [False, True, True]

"""Bias, Shift and Scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, normal, summed
from tiers import rows

import jattn
from jattn.foundation.pieces import align
from jattn.scores import Bias, Scale, Shift

HERE, THERE = np.arange(3)[:, None], np.arange(4)
BOTH = pytest.mark.parametrize("implementation", rows(["reference", "tiled"], ["tiled"]))


def modified(score, scores, batch=(2,), heads=2):
    aligned = align(score, batch, {"head": heads, "query": 3, "key": 4})
    return aligned.modify(scores, jnp.asarray(HERE), jnp.asarray(THERE))


@pytest.mark.parametrize("shape", [(2, 2, 3, 4), (1, 2, 3, 4), (1, 1, 4), (2, 1, 3, 1), (2, 1, 1, 4)])
def test_a_bias_is_added(shape):
    s, b = normal(0, (2, 2, 3, 4), shape)
    check(lambda s, b: modified(Bias(b), s), lambda s, b: s + b, s, b)


def test_a_bias_keeps_the_dtype_of_the_scores():
    s, b = normal(1, (2, 2, 3, 4), (1, 3, 4))
    for dtype in (np.float64, jnp.bfloat16, np.float16):
        assert modified(Bias(b.astype(dtype)), jnp.asarray(s)).dtype == jnp.float32
    gradient = jax.grad(lambda b: modified(Bias(b), s).sum())(jnp.asarray(b, jnp.bfloat16))
    assert gradient.dtype == jnp.bfloat16


@BOTH
def test_a_bias_of_minus_infinity_is_like_a_mask(implementation):
    q, k, v = normal(2, (2, 3, 2, 5), (2, 4, 2, 5), (2, 4, 2, 5))
    bias = np.where(np.array([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 1]], bool), 0, -np.inf).astype(np.float32)[None]

    def attend(options):
        def run(q, k, v):
            return jattn.attention(q, k, v, implementation=implementation, **options)

        return summed(run, q, k, v)

    masked = attend({"mask": jattn.masks.Dense(np.isfinite(bias))})
    for ours, theirs in zip(attend({"scores": Bias(bias)}), masked, strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    _, gradient = summed(
        lambda b: jattn.attention(q, k, v, scores=[Bias(b), Scale(2.0)], implementation=implementation), bias
    )
    assert np.isfinite(gradient).all() and not np.asarray(gradient)[0, 1].any()


@pytest.mark.parametrize("shape", [(), (2,), (1,), (2, 2)])
def test_a_factor_multiplies(shape):
    s, factor = normal(3, (2, 2, 3, 4), shape)
    factor = np.asarray(factor, np.float32)
    check(lambda s, f: modified(Scale(f), s), lambda s, f: s * (f if f.ndim == 0 else f[..., None, None]), s, factor)
    check(lambda s: modified(Scale(-0.5), s), lambda s: s * -0.5, s)


@pytest.mark.parametrize("shape", [(), (2,), (2, 2)])
def test_a_shift_is_added_to_all_scores_of_a_head(shape):
    s, amount = normal(5, (2, 2, 3, 4), shape)
    amount = np.asarray(amount, np.float32)
    check(lambda s, a: modified(Shift(a), s), lambda s, a: s + (a if a.ndim == 0 else a[..., None, None]), s, amount)
    np.testing.assert_array_equal(modified(Shift(-0.5), jnp.asarray(s)), s - np.float32(0.5))
    with pytest.raises(ValueError, match="`amount` must be a number"):
        Shift(np.inf)


@pytest.mark.parametrize("factor", [0.0, -2.0, 3.0])
def test_minus_infinity_stays_out_under_any_factor(factor):
    s = jnp.array([[1.0, -jnp.inf, 2.0, 0.0]] * 3)[None, None]
    value, pull = jax.vjp(lambda s, f: modified(Scale(f), s, (1,), 1), s, jnp.array([factor]))
    assert (np.asarray(value)[..., 1] == -np.inf).all()
    np.testing.assert_allclose(pull(jnp.ones_like(value))[1], [9.0])
    assert np.isfinite(pull(jnp.ones_like(value))[0]).all()


@pytest.mark.parametrize(
    "values", [np.ones((1, 3, 4), bool), np.ones((1, 3, 4), int), 1.0, None, np.ones((3, 4), np.float32)]
)
def test_a_bias_must_be_a_floating_point_array_with_every_axis(values):
    with pytest.raises(ValueError, match="`values` must be a floating-point array"):
        Bias(values)


def test_a_boolean_bias_is_told_of_masks():
    with pytest.raises(ValueError, match=r"mask=jattn\.masks\.Dense"):
        Bias(np.ones((1, 3, 4), bool))


@pytest.mark.parametrize("factor", [np.inf, np.nan, "2", None, True, np.ones(2, int)])
def test_a_factor_must_be_a_number(factor):
    with pytest.raises(ValueError, match="`factor` must be a"):
        Scale(factor)


def test_a_shape_that_does_not_fit_the_call_is_refused():
    q, k = normal(4, (3, 2, 5), (3, 2, 5))
    with pytest.raises(ValueError, match="key axis"):
        jattn.attention(q, k, k, scores=Bias(np.zeros((2, 3, 4), np.float32)))
    with pytest.raises(ValueError, match="head axis"):
        jattn.attention(q, k, k, scores=Scale(np.ones(3, np.float32)))

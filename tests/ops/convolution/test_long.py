"""The convolution by FFT equals its defining sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, normal

from jattn.ops.convolution import long_convolution


def truth(inputs, filters, skip=0.0):
    out = np.zeros(inputs.shape)
    for t in range(inputs.shape[-2]):
        for s in range(min(t + 1, len(filters))):
            out[..., t, :] += filters[s] * inputs[..., t - s, :]
    return out + skip * inputs


@pytest.mark.parametrize(("length", "taps"), [(1, 1), (5, 5), (7, 3), (4, 9)])
def test_long_is_the_sum(length, taps):
    inputs, filters, skip = normal(0, (2, length, 2), (taps, 2), (2,))
    check(long_convolution, truth, inputs, filters, skip)


@pytest.mark.parametrize("length", [63, *(pytest.param(one, marks=pytest.mark.exhaustive) for one in (1000, 1021))])
def test_nothing_wraps_around(length):
    """A filter whose last tap is the largest: circular, the end would come back to the start."""
    inputs, filters = normal(2, (length, 1), (length, 1))
    filters[-1] = 100
    np.testing.assert_allclose(long_convolution(inputs, filters), truth(inputs, filters), atol=2e-3)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_is_not_finite_stays_behind(poison):
    inputs, filters = normal(4, (9, 2), (9, 2))
    clean = long_convolution(inputs, filters)
    inputs[5, 0] = poison
    got = np.asarray(long_convolution(inputs, filters))
    np.testing.assert_allclose(got[:5], clean[:5], atol=1e-6)
    np.testing.assert_allclose(got[:, 1], clean[:, 1], atol=1e-6)
    assert np.isnan(got[5:, 0]).all()
    gradients = jax.grad(lambda *a: long_convolution(*a)[:5].sum(), (0, 1))(inputs, filters)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_dtypes_and_no_length():
    inputs, filters = normal(5, (33, 4), (33, 4))
    half = long_convolution(jnp.asarray(inputs, jnp.bfloat16), jnp.asarray(filters, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(half, np.float64), truth(inputs, filters), atol=0.2)
    assert long_convolution(jnp.ones((2, 0, 3)), jnp.ones((4, 3))).shape == (2, 0, 3)


def test_shapes_are_named():
    with pytest.raises(ValueError, match=r"`filters` must have shape \[taps, features\] with features = 3"):
        long_convolution(jnp.ones((5, 3)), jnp.ones((5, 2)))
    with pytest.raises(ValueError, match=r"`skip` must have shape"):
        long_convolution(jnp.ones((5, 3)), jnp.ones((5, 3)), jnp.ones(2))


def test_without_taps_there_is_the_skip():
    inputs, skip = normal(0, (2, 5, 3), (3,))
    np.testing.assert_allclose(long_convolution(inputs, np.zeros((0, 3), np.float32), skip), skip * inputs, atol=1e-6)
    assert long_convolution(inputs[:, :0], inputs[0], skip).shape == (2, 0, 3)

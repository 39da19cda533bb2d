"""Sinusoidal positions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import close

from jattn.positions import sinusoidal

POSITIONS = np.array([[0, 1, 2], [50, 700, 1499]])


def by_definition(dim, exponent):
    """sin and cos [..., dim / 2] of position * base^-exponent(i)."""
    angles = [[[p * 10000.0 ** -exponent(i) for i in range(dim // 2)] for p in row] for row in POSITIONS]
    return np.sin(angles), np.cos(angles)


@pytest.mark.parametrize("inclusive", [False, True])
def test_both_layouts(inclusive):
    sines, cosines = by_definition(10, lambda i: i / 4 if inclusive else 2 * i / 10)
    half = sinusoidal(POSITIONS, 10, layout="half", inclusive=inclusive)
    close(half, np.concatenate([sines, cosines], -1), 2e-4)  # angles of 1499 in float32
    interleaved = np.asarray(sinusoidal(POSITIONS, 10, inclusive=inclusive))
    np.testing.assert_array_equal(interleaved[..., 0::2], half[..., :5])
    np.testing.assert_array_equal(interleaved[..., 1::2], half[..., 5:])


def test_whispers_sinusoids():
    channels = 8
    increment = math.log(10000) / (channels // 2 - 1)
    scaled = np.arange(20)[:, None] * np.exp(-increment * np.arange(channels // 2))
    expected = np.concatenate([np.sin(scaled), np.cos(scaled)], axis=1)
    close(sinusoidal(np.arange(20), channels, layout="half", inclusive=True), expected, 1e-5)


@pytest.mark.exhaustive
def test_it_may_be_compiled_mapped_and_differentiated_in_positions():
    positions = jnp.array([0.0, 1.5, 3.0])
    close(jax.jit(lambda p: sinusoidal(p, 6))(positions), sinusoidal(positions, 6), 1e-6)
    close(jax.vmap(lambda p: sinusoidal(p, 6))(positions), sinusoidal(positions, 6), 1e-6)
    slope = jax.grad(lambda p: sinusoidal(p, 6)[0])(jnp.array(1.5))
    assert float(slope) == pytest.approx(math.cos(1.5), abs=1e-6)


def test_narrow_results_are_computed_in_float32():
    ours = sinusoidal(np.array([3001]), 8, dtype=jnp.bfloat16)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours, sinusoidal(np.array([3001]), 8).astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("dim", "options", "message"),
    [
        (7, {}, "`dim` must be a positive even integer"),
        (0, {}, "`dim`"),
        (8.0, {}, "`dim`"),
        (2, {"inclusive": True}, "`dim` must be at least 4"),
        (8, {"layout": "sin"}, "`layout` must be"),
        (8, {"base": 0.5}, "`base` must be"),
    ],
)
def test_bad_arguments(dim, options, message):
    with pytest.raises(ValueError, match=message):
        sinusoidal(POSITIONS, dim, **options)

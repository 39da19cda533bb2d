"""Angles at large positions: accurate to 1e-6, for all frequencies and kinds of positions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import positions
from jattn.positions import rotary, rotary_2d, rotary_sections, sinusoidal

DIMS = 16
LARGEST = 2**24
AT = np.unique(
    np.concatenate([np.arange(-3, 40), 2 ** np.arange(25), np.random.default_rng(0).integers(0, LARGEST, 400)])
)
SCALINGS = {
    "none": None,
    "Linear": positions.Linear(4.0),
    "NTK": positions.NTK(4.0),
    "DynamicNTK": positions.DynamicNTK(4.0, 4096, length=20000),
    "YaRN": positions.YaRN(4.0, 4096, attention_factor=1.0),
    "Llama3": positions.Llama3(8.0),
    "LongRoPE": positions.LongRoPE((1.0,) * 8, (3.0,) * 8, 4096, 8.0, length=9000, attention_factor=1.0),
    "Proportional": positions.Proportional(0.5),
}
# The cosine and the sine of each angle, as what a pair (1, 0) becomes.
PAIRS = jnp.tile(jnp.repeat(jnp.array([1.0, 0.0]), DIMS // 2), (len(AT), 1, 1))


def exact(frequencies, at=AT):
    angles = np.asarray(at, np.float64)[:, None] * frequencies
    return np.concatenate([np.cos(angles), np.sin(angles)], -1)


@pytest.mark.parametrize("name", SCALINGS)
def test_rotary_with_every_scaling(name):
    scaling = SCALINGS[name]
    frequencies = positions.rotary_frequencies(10000.0, DIMS) if scaling is None else scaling.frequencies(10000.0, DIMS)
    turn = functools.partial(rotary, PAIRS, scaling=scaling)
    known, traced = turn(AT)[:, 0], jax.jit(turn)(jnp.asarray(AT))[:, 0]
    for found in (known, traced, rotary(PAIRS, AT, frequencies=frequencies)[:, 0]):
        assert np.abs(found - exact(frequencies)).max() < 1e-6


@pytest.mark.exhaustive
def test_coordinates_and_sinusoids():
    both = rotary_2d(PAIRS[..., ::2], np.stack([AT, AT[::-1]], -1), layout="joint")[:, 0]
    rows, columns = (exact(positions.rotary_frequencies(10000.0, DIMS // 4), at) for at in (AT, AT[::-1]))
    quarter = DIMS // 8
    np.testing.assert_allclose(both[:, :quarter], rows[:, :quarter], atol=1e-6)
    np.testing.assert_allclose(both[:, quarter : 2 * quarter], columns[:, :quarter], atol=1e-6)
    sections = rotary_sections(PAIRS, np.stack([AT] * 3, -1), (2, 3, 3))
    np.testing.assert_array_equal(sections, rotary(PAIRS, AT))
    half = sinusoidal(AT, DIMS // 2, layout="half")
    frequencies = 10000.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(
        half, np.concatenate([exact(frequencies)[:, 4:], exact(frequencies)[:, :4]], -1), atol=1e-6
    )


def test_positions_of_every_kind():
    frequencies = positions.rotary_frequencies(10000.0, DIMS)
    natural = np.abs(AT)
    with jax.enable_x64(True):
        wide = jnp.asarray(natural, jnp.int64) + 2**33
        assert wide.dtype == jnp.int64
        found = jax.jit(lambda at: rotary(PAIRS, at))(wide)[:, 0]
        np.testing.assert_allclose(found, exact(frequencies, natural + 2.0**33), atol=1e-5)  # of float64 too
        np.testing.assert_allclose(
            rotary(PAIRS.astype(jnp.float64), natural)[:, 0], exact(frequencies, natural), atol=1e-8
        )
    for dtype in (jnp.uint32, jnp.float32, np.float64):
        found = rotary(PAIRS, natural.astype(dtype) if dtype == np.float64 else jnp.asarray(natural, dtype))[:, 0]
        np.testing.assert_allclose(found, exact(frequencies, natural), atol=1e-6)
    between = natural[natural < 2**20] + 0.25
    found = rotary(PAIRS[: len(between)], jnp.asarray(between, jnp.float32))[:, 0]
    np.testing.assert_allclose(found, exact(frequencies, between), atol=1e-6)
    # The slope is the frequency, also across a whole number.
    slope = jax.jacfwd(lambda at: rotary(PAIRS[:1], at[None])[0, 0, DIMS // 2 :])(jnp.float32(3.0))
    np.testing.assert_allclose(slope, np.cos(3 * frequencies) * frequencies, atol=1e-6)


@pytest.mark.parametrize("turn", [functools.partial(rotary, jnp.ones((3, 1, 4))), functools.partial(sinusoidal, dim=4)])
@pytest.mark.parametrize(
    ("at", "message"),
    [
        (jnp.arange(3, dtype=jnp.bfloat16), "`positions` must be integers.*bfloat16.*beyond 256.*jnp.arange"),
        (jnp.arange(3, dtype=jnp.float16), "float16.*beyond 2048"),
        (np.arange(3) + 2**31, "32 bits.*2147483648"),
        (np.arange(3, dtype=np.uint32) + np.uint32(2**31), "32 bits"),
        (-np.arange(3) - 2**31, "32 bits"),
        (np.ones(3, bool), "must be numbers"),
        (np.ones(3, complex), "must be numbers"),
    ],
)
def test_positions_that_do_not_tell_tokens_apart_are_refused(turn, at, message):
    with pytest.raises(ValueError, match=message):
        turn(positions=at)

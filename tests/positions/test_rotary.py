"""Rotary positions, on a line and on a grid."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, close, normal

from jattn.positions import Linear, YaRN, rotary, rotary_2d

SHAPE = (2, 5, 3, 8)
POSITIONS = np.array([0, 1, 7, 100, 3])
PAIRS = pytest.mark.parametrize("pairs", ["half", "interleaved"])


def as_complex(x, pairs):
    half = x.shape[-1] // 2
    return x[..., :half] + 1j * x[..., half:] if pairs == "half" else x[..., 0::2] + 1j * x[..., 1::2]


def turned(x, positions, pairs="half", dims=None, frequencies=None):
    """Each pair as a complex number, times exp(i position θ)."""
    dims = x.shape[-1] if dims is None else dims
    if frequencies is None:
        frequencies = 10000.0 ** (-np.arange(0, dims, 2) / dims)
    z = as_complex(x[..., :dims], pairs) * np.exp(1j * positions[..., None] * frequencies)[..., None, :]
    out = np.array(x)
    if pairs == "half":
        out[..., :dims] = np.concatenate([z.real, z.imag], -1)
    else:
        out[..., 0:dims:2], out[..., 1:dims:2] = z.real, z.imag
    return out


@PAIRS
@pytest.mark.parametrize("dims", [None, 4, 2])
def test_pairs_are_turned_by_position_times_frequency(pairs, dims):
    (x,) = normal(0, SHAPE)
    check(lambda x: rotary(x, POSITIONS, pairs=pairs, dims=dims), lambda x: turned(x, POSITIONS, pairs, dims), x)


@PAIRS
def test_positions_of_each_batch_element(pairs):
    (x,) = normal(1, SHAPE)
    positions = np.stack([POSITIONS, POSITIONS + 11])
    close(rotary(x, positions, pairs=pairs), turned(x.astype(float), positions, pairs), 1e-5)
    close(rotary(x, positions[:1], pairs=pairs), turned(x.astype(float), positions[:1], pairs), 1e-5)


def test_frequencies_are_learned():
    x, frequencies = normal(2, SHAPE, (4,))
    small = np.array([0, 1, 2, 3, -2])
    check(
        lambda x, f: rotary(x, small, frequencies=f),
        lambda x, f: turned(x, small, frequencies=f),
        x,
        frequencies,
        tolerance=2e-5,
    )


@PAIRS
def test_dot_products_depend_on_the_relative_position_only(pairs):
    q, k = normal(3, (1, 1, 16), (1, 1, 16))

    def product(at, there):
        return float((rotary(q, np.array([at]), pairs=pairs) * rotary(k, np.array([there]), pairs=pairs)).sum())

    for distance in (0, 1, 13):
        assert abs(product(distance, 0) - product(distance + 50, 50)) < 1e-4
        assert abs(product(distance, 0) - product(distance - 7, -7)) < 1e-4
    assert abs(product(1, 0) - product(5, 0)) > 1e-3


def test_position_0_and_lengths_are_kept():
    (x,) = normal(4, SHAPE)
    np.testing.assert_array_equal(np.asarray(rotary(x, POSITIONS))[:, 0], x[:, 0])
    close(jnp.linalg.norm(rotary(x, POSITIONS), axis=-1), np.linalg.norm(x, axis=-1), 1e-6)


def test_the_two_layouts_are_a_permutation_of_features():
    (x,) = normal(5, SHAPE)
    order = np.arange(8).reshape(2, 4).T.reshape(-1)  # half -> interleaved
    close(rotary(x, POSITIONS)[..., order], rotary(x[..., order], POSITIONS, pairs="interleaved"), 1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_dtypes_are_turned_in_float32(dtype):
    x = jnp.asarray(normal(6, SHAPE)[0], dtype)
    far = POSITIONS + 3000  # angles that the narrow dtype could not hold
    out, pull = jax.vjp(lambda x: rotary(x, far), x)
    assert out.dtype == dtype and pull(out)[0].dtype == dtype
    exact = rotary(x.astype(jnp.float32), far)
    np.testing.assert_array_equal(out, exact.astype(dtype))


def test_positions_are_arguments_of_jit_and_do_not_retrace():
    (x,) = normal(7, SHAPE)
    traced = []

    @jax.jit
    def run(x, positions):
        traced.append(None)
        return rotary(x, positions)

    close(run(x, jnp.asarray(POSITIONS)), rotary(x, POSITIONS), 1e-6)
    close(run(x, jnp.asarray(POSITIONS + 1)), rotary(x, POSITIONS + 1), 1e-6)
    assert len(traced) == 1


def test_scaling_changes_the_frequencies_and_the_size():
    (x,) = normal(8, SHAPE)
    close(rotary(x, POSITIONS * 4, scaling=Linear(4.0)), rotary(x, POSITIONS), 1e-5)
    yarn = YaRN(4.0, original_length=64)
    plain = rotary(x, POSITIONS, frequencies=yarn.frequencies(10000.0, 8))
    close(rotary(x, POSITIONS, scaling=yarn), plain * (0.1 * np.log(4) + 1), 1e-6)


@PAIRS
def test_a_grid_turns_one_half_by_rows_and_the_other_by_columns(pairs):
    (x,) = normal(9, (2, 6, 3, 8))
    grid = np.indices((2, 3)).reshape(2, -1).T

    def truth(x):
        halves = turned(x[..., :4], grid[:, 0], pairs), turned(x[..., 4:], grid[:, 1], pairs)
        return np.concatenate(halves, -1)

    check(lambda x: rotary_2d(x, grid, pairs=pairs), truth, x)


def test_products_on_a_grid_depend_on_relative_rows_and_columns_only():
    q, k = normal(10, (1, 1, 8), (1, 1, 8))

    def product(at, there):
        return float((rotary_2d(q, np.array([at])) * rotary_2d(k, np.array([there]))).sum())

    assert abs(product((3, 5), (1, 2)) - product((13, 8), (11, 5))) < 1e-5
    assert abs(product((3, 5), (1, 2)) - product((3, 5), (2, 2))) > 1e-4
    assert abs(product((3, 5), (1, 2)) - product((3, 5), (1, 4))) > 1e-4


X: Any = np.ones(SHAPE, np.float32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": 3}, "`dims` must be even"),
        ({"dims": 10}, "`dims` must be even, positive and at most the 8"),
        ({"dims": 0}, "`dims`"),
        ({"pairs": "both"}, "`pairs` must be one of 'half', 'interleaved'"),
        ({"base": 1.0}, "`base` must be a finite number above 1"),
        ({"scaling": 4.0}, "`scaling` must be a `Scaling`"),
        ({"frequencies": np.ones(3)}, r"`frequencies` must have shape \(4,\)"),
        ({"frequencies": np.ones(4), "scaling": Linear(2.0)}, "exclude each other"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        rotary(X, POSITIONS, **options)


@pytest.mark.parametrize("positions", [np.arange(4), np.zeros((3, 5), int), np.ones(5, bool), np.array(1)])
def test_positions_must_fit(positions):
    with pytest.raises(ValueError, match="`positions` must be numbers"):
        rotary(X, positions)


def test_features_must_be_floating_point_and_even():
    with pytest.raises(ValueError, match="`x` must be a floating-point array"):
        rotary(X.astype(int), POSITIONS)
    with pytest.raises(ValueError, match="`x` must be a floating-point array"):
        rotary(X[0, 0], np.arange(3))
    with pytest.raises(ValueError, match="`dims` must be even"):
        rotary(X[..., :7], POSITIONS)
    with pytest.raises(ValueError, match="multiple of 4"):
        rotary_2d(X[..., :6], np.zeros((5, 2), int))
    with pytest.raises(ValueError, match="row and column"):
        rotary_2d(X, POSITIONS)

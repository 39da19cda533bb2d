"""Masks given pair by pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mask_pairs import allowed

from jattn import masks


@pytest.mark.parametrize("backend", [np, jnp])
@pytest.mark.parametrize(
    "shape", [(1, 5, 7), (3, 5, 7), (3, 1, 7), (3, 5, 1), (1, 3, 5, 7), (2, 1, 5, 7), (2, 3, 5, 7), (2, 1, 1, 7)]
)
def test_is_the_array(backend, shape):
    given = np.random.default_rng(1).random(shape) < 0.5
    found = allowed(masks.Dense(backend.asarray(given)), 5, 7, (2,), 3)
    np.testing.assert_array_equal(found, np.broadcast_to(given, (2, 3, 5, 7)))


def test_does_not_look_at_positions():
    given = np.random.default_rng(2).random((1, 4, 4)) < 0.5
    here, there = allowed(masks.Dense(given), 4, 4), allowed(masks.Dense(given), 4, 4, query=range(9, 13), key=[0] * 4)
    np.testing.assert_array_equal(here, there)


def test_three_axes_are_never_the_batch():
    square = np.random.default_rng(3).random((2, 4, 4)) < 0.5
    np.testing.assert_array_equal(allowed(masks.Dense(square), 4, 4, (5,), 2), np.stack([square] * 5))
    with pytest.raises(ValueError, match=r"`Dense.array`.*open"):  # as many sequences as heads
        allowed(masks.Dense(square), 4, 4, (2,), 2)
    with pytest.raises(ValueError, match=r"`Dense.array`.*head"):
        allowed(masks.Dense(square), 4, 4, (2,), 3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: masks.Dense(np.zeros((1, 4, 4), np.float32)), ("`array`", "float32", "scores.Bias", "array > -1")),
        (lambda: masks.Dense(np.ones((1, 4, 4), int)), ("`array`", "int64", "boolean")),
        (lambda: masks.Dense(np.ones((4, 4), bool)), ("`array`", "(4, 4)", "not guessed", "array[None]")),
        (lambda: masks.Dense(jnp.ones((4,), bool)), ("`array`", "(4,)")),
        (lambda: masks.as_mask(np.zeros((2, 1, 4, 4), np.float32)), ("`mask`", "scores.Bias", "array > -1")),
        (lambda: masks.as_mask(jnp.zeros((1, 4, 4), jnp.bfloat16)), ("`mask`", "scores.Bias", "array > -1")),
        (lambda: masks.as_mask(np.ones((2, 1, 4, 4), bool)), ("`mask`", "A boolean array", "masks.Dense(array)`")),
        (lambda: masks.as_mask(lambda q: q > 0), ("(query, key)", "takes 1 argument.")),
        (lambda: masks.Dense(True), ("`array`", "True")),
        (lambda: masks.Dense(None), ("`array`", "None")),
    ],
)
def test_bad_arguments(make, words):
    with pytest.raises(ValueError) as raised:
        make()
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize("shape", [(1, 5, 6), (1, 4, 7), (2, 5, 7), (3, 1, 5, 7), (1, 2, 1, 5, 7)])
def test_arrays_that_do_not_fit_the_call(shape):
    with pytest.raises(ValueError, match=r"`Dense.array`"):
        allowed(masks.Dense(np.ones(shape, bool)), 5, 7, (2,), 3)


def test_a_tracer_is_checked_by_its_dtype_and_rank():
    jax.eval_shape(lambda array: masks.Dense(array), jax.ShapeDtypeStruct((1, 4, 4), bool))
    with pytest.raises(ValueError, match="boolean"):
        jax.eval_shape(lambda array: masks.Dense(array), jax.ShapeDtypeStruct((1, 4, 4), jnp.float32))

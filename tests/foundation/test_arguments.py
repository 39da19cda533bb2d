"""The checks that variants make of lengths, pieces and random keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.foundation.arguments import leave_out
from jattn.foundation.arrays import known_range
from jattn.foundation.shapes import check_lengths, token_mask


def test_lengths_are_one_for_each_example():
    np.testing.assert_array_equal(check_lengths(None, (2,), 5), [5, 5])
    np.testing.assert_array_equal(check_lengths(3, (2,), 5), [3, 3])
    np.testing.assert_array_equal(token_mask([0, 2], (2,), 3), [[0, 0, 0], [1, 1, 0]])
    np.testing.assert_array_equal(jax.jit(lambda n: check_lengths(n, (1,), 3))(jnp.array([7])), [7])  # not known
    for lengths, message in (
        ([1, 2, 3], r"of shape \(2,\) like the batch axes; got shape \(3,\)"),
        ([1, 6], "`lengths` must be at most 5, the length of the arrays; got 6"),
        ([1, -1], "`lengths` must be an integer of at least 0"),
        ([1.0, 2.0], "`lengths` must be an integer of at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            check_lengths(lengths, (2,), 5)


def test_a_range_is_known_outside_of_tracing():
    assert known_range(jnp.array([[4, 2], [9, 3]])) == (2, 9)
    assert known_range(np.zeros((0,), int)) is None
    seen = []
    jax.eval_shape(lambda numbers: seen.append(known_range(numbers)), jnp.array([1]))
    assert seen == [None]


def test_pieces_that_are_left_out():
    assert leave_out({"mask": 1, "dropout": None}, "never", "dropout", "scores") == {"mask": 1}
    with pytest.raises(ValueError, match=r"`dropout` must be left out: never; got 0.1"):
        leave_out({"mask": 1, "dropout": 0.1}, "never", "dropout")

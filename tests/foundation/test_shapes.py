"""Shapes are checked as written, and the error says what was received and what was expected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.foundation.arguments import check_choice, check_counts, check_flags, check_key, check_positive
from jattn.foundation.shapes import check_shapes


def test_sizes_are_returned():
    sizes = check_shapes(a=(np.ones((3, 4, 5)), "... n d"), b=(np.ones((5, 7)), "d e"), c=(np.ones((3, 2)), "... 2"))
    assert sizes == {"n": 4, "d": 5, "e": 7}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": (3.0, "n")}, r"`a` must be an array \[n\], of JAX or NumPy; got 3.0"),
        ({"a": (np.ones(3, int), "n")}, "`a` must be floating-point; got int64"),
        ({"a": (np.ones((3, 3)), "n")}, r"`a` must have shape \[n\]; got \(3, 3\)"),
        ({"a": (np.ones(3), "... n d")}, r"`a` must have shape \[..., n, d\]; got \(3,\)"),
        ({"a": (np.ones(3), "n"), "b": (np.ones(4), "n")}, r"`b` .* with n = 3, as in `a`; got \(4,\)"),
        ({"a": (np.ones((2, 3)), "... n"), "b": (np.ones((1, 3)), "... n")}, r"batch axes = \(2,\), as in `a`"),
        ({"a": (np.ones(3), "4")}, r"`a` must have shape \[4\]; got \(3,\)"),
    ],
)
def test_what_does_not_fit_is_named(arrays, message):
    with pytest.raises(ValueError, match=message):
        check_shapes(**arrays)


def test_a_kind_of_dtype():
    check_shapes(kind=jnp.integer, ids=(np.ones(3, int), "n"))
    with pytest.raises(ValueError, match="`ids` must be integers; got float64"):
        check_shapes(kind=jnp.integer, ids=(np.ones(3), "n"))


def test_choices_and_sizes():
    check_choice("sharing", "none", ("none", "heads"))
    with pytest.raises(ValueError, match="`sharing` must be one of 'none', 'heads'; got 'head'"):
        check_choice("sharing", "head", ("none", "heads"))
    check_positive(window=3)
    for bad in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="`window` must be a positive int"):
            check_positive(window=bad)


def test_keys():
    for key in (jax.random.key(0), jax.random.PRNGKey(0), jax.random.key_data(jax.random.key(0))):
        check_key("key", key)
        jax.eval_shape(lambda traced: check_key("key", traced), key)
    for wrong in (3, None, jnp.zeros(2), jax.random.split(jax.random.key(0), 2)):
        with pytest.raises(ValueError, match="`key` must be one random key"):
            check_key("key", wrong)


def test_flags():
    check_flags(one=True, other=np.bool_(False))
    for value in (1, "no", None, jnp.array(True)):
        with pytest.raises(ValueError, match="`one` must be True or False"):
            check_flags(one=value)


def test_an_axis_that_comes_twice_has_one_size():
    assert check_shapes(square=(np.ones((3, 3)), "n n")) == {"n": 3}
    for known in ({}, {"n": 5}):
        with pytest.raises(ValueError, match=r"`square` must have shape \[n, n\]"):
            check_shapes(known, square=(np.ones((4, 5)), "n n"))


def test_counts():
    check_counts(layer=0, seed=3)
    for value in (-1, 1.0, True, "two", None):
        with pytest.raises(ValueError, match="`layer` must be an int of at least 0"):
            check_counts(layer=value)

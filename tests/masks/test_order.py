"""Masks by order: causal, windows, dilated, strided, prefix, sinks."""

import jax.numpy as jnp
import numpy as np
import pytest
from mask_pairs import allowed, defined

from jattn import masks

CASES = {
    "causal": (masks.Causal(), lambda q, k: k <= q),
    "window": (masks.SlidingWindow(3, 2), lambda q, k: q - 3 <= k <= q + 2),
    "window to the left": (masks.SlidingWindow(4, 0), lambda q, k: q - 4 <= k <= q),
    "window to the right": (masks.SlidingWindow(0, 4), lambda q, k: q <= k <= q + 4),
    "window open to the right": (masks.SlidingWindow(2), lambda q, k: q - 2 <= k),
    "window open to the left": (masks.SlidingWindow(right=2), lambda q, k: k <= q + 2),
    "window open on both sides": (masks.SlidingWindow(), lambda q, k: True),
    "enormous window": (masks.SlidingWindow(2**31 - 1, 2**31 - 1), lambda q, k: True),
    "dilated": (masks.Dilated(2, 3), lambda q, k: (q - k) % 3 == 0 and abs(q - k) <= 6),
    "dilated by one": (masks.Dilated(2, 1), lambda q, k: abs(q - k) <= 2),
    "dilated without a window": (masks.Dilated(0, 3), lambda q, k: q == k),
    "strided": (masks.Strided(5), lambda q, k: (q - k) % 5 == 0),
    "prefix": (masks.Prefix(4), lambda q, k: k <= q or k < 4),
    "no prefix": (masks.Prefix(0), lambda q, k: k <= q),
    "sinks": (masks.Sinks(3), lambda q, k: k < 3),
    "no sinks": (masks.Sinks(0), lambda q, k: False),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("query", "key"), [((1,), (1,)), (range(13), range(13)), (range(5, 16), range(2, 25, 2))])
def test_equals_its_definition(name, query, key):
    mask, rule = CASES[name]
    found = allowed(mask, len(query), len(key), query=query, key=key)
    np.testing.assert_array_equal(found[0], defined(rule, query, key))


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda n: masks.SlidingWindow(n, 1), lambda n: lambda q, k: q - n <= k <= q + 1),
        (lambda n: masks.SlidingWindow(1, n), lambda n: lambda q, k: q - 1 <= k <= q + n),
        (lambda n: masks.SlidingWindow(n, n), lambda n: lambda q, k: abs(q - k) <= n),
        (lambda n: masks.Dilated(n, 2), lambda n: lambda q, k: (q - k) % 2 == 0 and abs(q - k) <= 2 * n),
        (lambda n: masks.Dilated(2, n), lambda n: lambda q, k: (q - k) % n == 0 and abs(q - k) <= 2 * n),
        (masks.Strided, lambda n: lambda q, k: (q - k) % n == 0),
        (masks.Sinks, lambda n: lambda q, k: k < n),
    ],
)
@pytest.mark.parametrize("backend", [np, jnp])
def test_a_number_for_each_head_and_sequence(make, rule, backend):
    numbers = np.array([[1, 3, 2], [4, 1, 5]])
    by_head = allowed(make(backend.asarray(numbers[0])), 9, 11, (2,), 3)
    by_both = allowed(make(backend.asarray(numbers)), 9, 11, (2,), 3)
    by_batch = allowed(make(backend.asarray(numbers[:, :1])), 9, 11, (2,), 3)
    for b in range(2):
        for h in range(3):
            np.testing.assert_array_equal(by_head[b, h], defined(rule(numbers[0, h]), 9, 11))
            np.testing.assert_array_equal(by_both[b, h], defined(rule(numbers[b, h]), 9, 11))
            np.testing.assert_array_equal(by_batch[b, h], defined(rule(numbers[b, 0]), 9, 11))


def test_a_prefix_for_each_sequence():
    lengths = np.array([0, 3, 20])
    found = allowed(masks.Prefix(lengths), 7, 9, (3,), 2)
    for b, length in enumerate(lengths):
        wanted = defined(lambda q, k, length=length: k <= q or k < length, 7, 9)
        np.testing.assert_array_equal(found[b], np.stack([wanted] * 2))


def test_a_number_without_axes_is_shared():
    assert masks.SlidingWindow(np.array(3)).left == 3
    shared = masks.Strided(jnp.array(3))
    assert shared.stride.shape == (1,)
    np.testing.assert_array_equal(allowed(shared, 5, 5, (2,), 2), allowed(masks.Strided(3), 5, 5, (2,), 2))


def test_a_window_to_the_left_sees_no_future():
    future = np.triu(np.ones((9, 9), bool), 1)
    assert not (allowed(masks.SlidingWindow(3, 0), 9, 9)[0] & future).any()
    assert not (allowed(masks.SlidingWindow(None, 0), 9, 9)[0] & future).any()
    assert not (allowed(masks.SlidingWindow(np.array([3, 1]), 0), 9, 9, heads=2) & future).any()


def test_the_sparse_transformer_is_a_composition():
    strided = masks.Causal() & (masks.SlidingWindow(3, 0) | masks.Strided(4))
    np.testing.assert_array_equal(
        allowed(strided, 17, 17)[0], defined(lambda q, k: k <= q and (q - k <= 3 or (q - k) % 4 == 0), 17, 17)
    )
    twice = allowed(strided, 17, 17)[0].astype(int)
    assert (np.tril(twice @ twice) > 0)[np.tril_indices(17)].all()  # two layers reach every earlier position


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: masks.SlidingWindow(-2, 0), ("`left`", "-2", "at least -1")),
        (lambda: masks.SlidingWindow(1, -2), ("`right`", "-2")),
        (lambda: masks.SlidingWindow(np.array([2, -3])), ("`left`", "-3", "(2,)")),
        (lambda: masks.SlidingWindow(jnp.array([2, -3])), ("`left`", "-3")),
        (lambda: masks.SlidingWindow(2.0), ("`left`", "2.0", "float")),
        (lambda: masks.SlidingWindow(True), ("`left`", "True")),
        (lambda: masks.SlidingWindow(jnp.ones(2)), ("`left`", "float32")),
        (lambda: masks.SlidingWindow(2**31), ("`left`", "int32")),
        (lambda: masks.SlidingWindow(np.array([2**31])), ("`left`", "int32")),
        (lambda: masks.SlidingWindow("3"), ("`left`", "'3'")),
        (lambda: masks.Dilated(-1, 2), ("`reach`",)),
        (lambda: masks.Dilated(1, 0), ("`dilation`", "at least 1")),
        (lambda: masks.Dilated(2**20, 2**20), ("`reach * dilation`", "Strided")),
        (lambda: masks.Strided(0), ("`stride`",)),
        (lambda: masks.Prefix(-1), ("`length`",)),
        (lambda: masks.Sinks(-1), ("`count`",)),
    ],
)
def test_bad_arguments(make, words):
    with pytest.raises(ValueError) as raised:
        make()
    for word in words:
        assert word in str(raised.value)

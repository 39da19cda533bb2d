"""Masks on a grid: neighborhoods and lines."""

import itertools
import math

import numpy as np
import pytest
from mask_pairs import allowed, defined

from jattn import masks


def _window(at, side, width, step):
    """The `width` coordinates, `step` apart and of the parity of `at`, whose middle is nearest to `at`."""
    own = [i for i in range(side) if (i - at) % step == 0]
    starts = range(len(own) - width + 1)
    best = min(starts, key=lambda start: abs(own[start + width // 2] - at))
    return set(own[best : best + width])


def _neighborhood(shape, window, dilation):
    cells = list(itertools.product(*map(range, shape)))  # row-major

    def rule(q, k):
        if not (0 <= q < len(cells) and 0 <= k < len(cells)):
            return False
        axes = zip(cells[q], cells[k], shape, window, dilation, strict=True)
        return all(there in _window(here, side, width, step) for here, there, side, width, step in axes)

    return rule


GRIDS = [
    ((9,), (3,), (1,)),
    ((9,), (9,), (1,)),
    ((9,), (1,), (1,)),
    ((11,), (3,), (3,)),
    ((12,), (5,), (2,)),
    ((5, 7), (3, 5), (1, 1)),
    ((7, 5), (3, 1), (2, 3)),
    ((6, 6), (3, 3), (2, 1)),
    ((3, 4, 5), (3, 1, 3), (1, 1, 1)),
    ((2, 5, 4), (1, 3, 3), (2, 1, 1)),
]


@pytest.mark.parametrize(("shape", "window", "dilation"), GRIDS)
def test_neighborhood(shape, window, dilation):
    length = math.prod(shape)
    found = allowed(masks.Neighborhood(shape, window, dilation), length, length)[0]
    np.testing.assert_array_equal(found, defined(_neighborhood(shape, window, dilation), length, length))
    np.testing.assert_array_equal(found.sum(1), math.prod(window))  # every query has the full window


def test_neighborhood_beyond_the_grid():
    query, key = range(-3, 24), range(-2, 23)
    found = allowed(masks.Neighborhood((4, 5), 3), len(query), len(key), query=query, key=key)[0]
    np.testing.assert_array_equal(found, defined(_neighborhood((4, 5), (3, 3), (1, 1)), query, key))


def test_one_number_stands_for_every_axis():
    assert masks.Neighborhood((6, 7), 3, 2) == masks.Neighborhood([6, 7], (3, 3), (2, 2))
    assert masks.Neighborhood((6, 7), 3).dilation == (1, 1)


@pytest.mark.parametrize("shape", [(7,), (4, 5), (3, 2, 4)])
def test_axial(shape):
    cells = list(itertools.product(*map(range, shape)))
    query, key = range(-2, len(cells) + 3), range(-1, len(cells) + 2)
    for axis in range(len(shape)):

        def rule(q, k, axis=axis):
            if not (0 <= q < len(cells) and 0 <= k < len(cells)):
                return False
            return all(a == b for i, (a, b) in enumerate(zip(cells[q], cells[k], strict=True)) if i != axis)

        found = allowed(masks.Axial(shape, axis), len(query), len(key), query=query, key=key)[0]
        np.testing.assert_array_equal(found, defined(rule, query, key))
        assert masks.Axial(shape, axis - len(shape)) == masks.Axial(shape, axis)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: masks.Neighborhood((4, 4), 2), ("`window`", "odd", "(2, 2)")),
        (lambda: masks.Neighborhood((4, 4), 5), ("`window * dilation`", "(5, 5)", "(4, 4)")),
        (lambda: masks.Neighborhood((8, 8), 3, (2, 3)), ("`window * dilation`", "(2, 3)")),
        (lambda: masks.Neighborhood((8, 8), (3, 3, 3)), ("`window`", "2 axes")),
        (lambda: masks.Neighborhood((8, 8), (3, 0)), ("`window[1]`", "0")),
        (lambda: masks.Neighborhood((8, 8), 3.0), ("`window`", "3.0")),
        (lambda: masks.Neighborhood((8, 8), 3, -1), ("`dilation[0]`", "-1")),
        (lambda: masks.Neighborhood(8, 3), ("`shape`", "tuple", "8")),
        (lambda: masks.Neighborhood((), 3), ("`shape`", "1 to 3")),
        (lambda: masks.Neighborhood((2, 2, 2, 2), 1), ("`shape`", "1 to 3")),
        (lambda: masks.Neighborhood((2**16, 2**16), 3), ("`shape`", "positions")),
        (lambda: masks.Axial((4, 5), 2), ("`axis`", "(4, 5)", "2")),
        (lambda: masks.Axial((4, 5), -3), ("`axis`", "-3")),
        (lambda: masks.Axial((4, 5), (0,)), ("`axis`", "(0,)")),
        (lambda: masks.Axial((4, 0), 0), ("`shape[1]`", "0")),
    ],
)
def test_bad_arguments(make, words):
    with pytest.raises(ValueError) as raised:
        make()
    for word in words:
        assert word in str(raised.value)

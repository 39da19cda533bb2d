"""Alignments: time warping against every way, times of words on a map with known times, error rates."""

import functools

import numpy as np
import pytest

from jattn import analysis

RANDOM = np.random.default_rng(0)


def test_time_warping_finds_the_cheapest_of_all_ways():
    for shape in ((1, 4), (4, 1), (3, 5), (5, 4)):
        cost = RANDOM.normal(size=shape)

        @functools.cache
        def least(i, j, cost=cost):
            if i == j == 0:
                return cost[0, 0]
            before = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
            return cost[i, j] + min(least(a, b) for a, b in before if a >= 0 and b >= 0)

        rows, columns = analysis.time_warp(cost)
        assert (rows[0], columns[0], rows[-1], columns[-1]) == (0, 0, shape[0] - 1, shape[1] - 1)
        steps = set(zip(np.diff(rows).tolist(), np.diff(columns).tolist(), strict=True))
        assert steps <= {(0, 1), (1, 0), (1, 1)}
        assert np.isclose(cost[rows, columns].sum(), least(shape[0] - 1, shape[1] - 1))


def test_words_are_found_where_the_heads_follow_them():
    """Five tokens of 3 words, each of which is said in its own frames, by three heads of which one does not follow."""
    bounds = [0, 20, 45, 60, 90, 100]
    frames, tokens = 130, 5
    maps = RANDOM.random((3, tokens, frames)) * 0.2
    for token in range(tokens):
        maps[:2, token, bounds[token] : bounds[token + 1]] += 1
    maps[:, 2, 100:] = 50  # beyond the sound
    given = ["one", "two", "three"], [1, 2, 1]
    found = analysis.word_times(maps, *given, frames=100)
    assert found == analysis.word_times(maps[..., :100], *given) != analysis.word_times(maps, *given)
    assert [word.text for word in found] == ["one", "two", "three"]
    times = [time for word in found for time in (word.start, word.end)]
    np.testing.assert_allclose(times, [0, 0.4, 0.4, 1.2, 1.2, 1.8], atol=0.061)
    assert analysis.word_times(np.ones((1, 2, 3)), ["a"], [1], width=1)[0].start == 0  # nothing to follow


def test_alignment_by_each_rule():
    weights = np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    assert analysis.align(weights) == {(0, 0), (1, 0), (2, 2)}
    assert analysis.align(weights, by="both") == {(0, 0), (2, 2)}
    assert analysis.align(weights, by="softmax", threshold=0.3) == {(0, 0), (1, 0), (1, 1), (2, 2)}


def test_error_rates():
    sure, possible = {(0, 0), (1, 1)}, {(1, 2), (2, 2)}
    rate = analysis.alignment_error_rate
    assert rate(sure, sure, possible) == 0
    assert rate(sure | possible, sure, possible) == 0
    assert rate({(3, 3)}, sure, possible) == 1
    assert np.isclose(rate({(0, 0), (2, 2), (3, 3)}, sure, possible), 1 - (1 + 2) / (3 + 2))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: analysis.time_warp(np.ones(3)), r"`cost` must have shape \[rows, columns\]"),
        (lambda: analysis.time_warp(np.full((2, 2), np.nan)), "`cost` must be finite"),
        (lambda: analysis.word_times(np.ones((3, 4)), ["a"], [3]), r"\[heads, tokens, frames\]"),
        (lambda: analysis.word_times(np.ones((1, 3, 4)), ["a"], [3]), "how many of the 2 tokens"),
        (lambda: analysis.word_times(np.ones((1, 3, 4)), ["a"], [2], frames=5), "`frames` must be at most 4"),
        (lambda: analysis.word_times(np.ones((1, 3, 4)), ["a"], [2], width=2), "`width` odd"),
        (lambda: analysis.align(np.ones((1, 2, 2))), r"\[queries, keys\], of one head"),
        (lambda: analysis.align(np.ones((2, 2)), by="max"), "`by` must be one of 'argmax'"),
        (lambda: analysis.alignment_error_rate([], []), "must not both be empty"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()

"""When each word is said: the attention of a decoder to sound, aligned in order by dynamic time warping."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

SECONDS = 0.02  # of a position of Whisper's encoder


class Word(NamedTuple):
    """A word, and when it begins and ends, in seconds."""

    text: str
    start: float
    end: float


def word_times(tokens: Sequence[int], weights: np.ndarray, tokenizer: Any, seconds: float) -> list[Word]:
    """The words of a text, with times.

    Args:
        tokens: those of the text.
        weights: cross-attention of a few heads that follow the sound, `[heads, 1 + tokens, positions]`: of the queries
            that predict each token, and the end of the text.
        tokenizer: has `decode`.
        seconds: duration of the sound.
    """
    heard = weights[..., : max(1, round(seconds / SECONDS))].mean(0)
    starts = first_columns(warp(-heard)) * SECONDS
    words: list[Word] = []
    for index, token in enumerate(tokens):
        text, start, end = tokenizer.decode([token]), float(starts[index]), float(starts[index + 1])
        if text[:1].isspace() or not words:
            words.append(Word(text.strip(), start, end))
        else:
            words[-1] = Word(words[-1].text + text, words[-1].start, end)
    return words


def warp(cost: np.ndarray) -> np.ndarray:
    """The cheapest path from the first corner to the last, a step right, down, or both: pairs `[steps, 2]`.

        D[i, j] = cost[i, j] + min(D[i-1, j-1], D[i-1, j], D[i, j-1])

    >>> warp(np.array([[0, 0, 9, 9], [9, 9, 0, 9], [9, 9, 9, 0]])).tolist()
    [[0, 0], [0, 1], [1, 2], [2, 3]]
    """
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0
    for i in range(rows):
        for j in range(columns):
            total[i + 1, j + 1] = cost[i, j] + min(total[i, j], total[i, j + 1], total[i + 1, j])
    i, j = rows - 1, columns - 1
    path = [(i, j)]
    while (i, j) != (0, 0):
        before = ((i - 1, j - 1), (i - 1, j), (i, j - 1))
        i, j = min(before, key=lambda at: total[at[0] + 1, at[1] + 1])
        path.append((i, j))
    return np.array(path[::-1])


def first_columns(path: np.ndarray) -> np.ndarray:
    """Where a path enters each row."""
    return path[np.unique(path[:, 0], return_index=True)[1], 1]

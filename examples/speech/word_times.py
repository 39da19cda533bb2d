"""When each word is said: the attention of a decoder to sound, aligned in order by dynamic time warping."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jattn.analysis import Word, time_warp

SECONDS = 0.02  # of a position of Whisper's encoder


def word_times(tokens: Sequence[int], weights: np.ndarray, tokenizer: Any, seconds: float) -> list[Word]:
    """The words of a text, with times.

    Time warping through the mean weights as they are. `jattn.analysis.word_times` standardizes them over tokens first,
    as Whisper's authors do, where long silences between words can shift one into the silence.

    Args:
        tokens: those of the text.
        weights: cross-attention of a few heads that follow the sound, `[heads, 1 + tokens, positions]`: of the queries
            that predict each token, and the end of the text.
        tokenizer: has `decode`.
        seconds: duration of the sound.
    """
    heard = weights[..., : max(1, round(seconds / SECONDS))].mean(0)
    rows, columns = time_warp(-heard)
    starts = columns[np.searchsorted(rows, np.arange(len(heard)))] * SECONDS
    words: list[Word] = []
    for index, token in enumerate(tokens):
        text, start, end = tokenizer.decode([token]), float(starts[index]), float(starts[index + 1])
        if text[:1].isspace() or not words:
            words.append(Word(text.strip(), start, end))
        else:
            words[-1] = Word(words[-1].text + text, words[-1].start, end)
    return words

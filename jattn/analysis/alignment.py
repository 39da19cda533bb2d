"""Alignments from cross-attention: which input each output belongs to, and when a word was said."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..foundation.arguments import check_choice, check_positive
from ..foundation.arrays import describe
from .foreign import as_numpy, check_floats

Pair = tuple[int, int]


def time_warp(cost: Any) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest way through a matrix from its first to its last entry, by steps down, right, or both.

        D_ij = C_ij + min(D_{i-1,j-1}, D_{i-1,j}, D_{i,j-1})

    Dynamic time warping; of equal ways, the diagonal.

    Args:
        cost: `[rows, columns]`.

    Returns:
        The rows and the columns of the entries along the way, integers `[steps]` each.

    Raises:
        ValueError: `cost` is not a matrix of finite numbers.

    >>> import numpy as np
    >>> rows, columns = time_warp(-np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    >>> rows.tolist(), columns.tolist()
    ([0, 0, 1], [0, 1, 2])
    """
    if len(check_floats("`cost`", cost)) != 2 or 0 in np.shape(cost):
        raise ValueError(f"`cost` must have shape [rows, columns]; got {describe(cost)}.")
    cost = as_numpy(cost).astype(np.float64)
    if not np.isfinite(cost).all():
        raise ValueError("`cost` must be finite; got NaN or inf.")
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0
    step = np.zeros((rows + 1, columns + 1), np.int8)
    for i in range(1, rows + 1):
        above, row = total[i - 1].tolist(), cost[i - 1].tolist()
        left, own, taken = np.inf, [np.inf], [0]
        for j in range(1, columns + 1):
            ways = (above[j - 1], above[j], left)
            best = min(ways)
            left = row[j - 1] + best
            own.append(left)
            taken.append(ways.index(best))
        total[i], step[i] = own, taken
    way = []
    i, j = rows, columns
    while i > 0 and j > 0:
        way.append((i - 1, j - 1))
        move = step[i, j]
        i, j = i - (move != 2), j - (move != 1)
    found = np.array(way[::-1])
    return found[:, 0], found[:, 1]


class Word(NamedTuple):
    """A word and when it was said, in seconds."""

    text: str
    start: float
    end: float


def word_times(
    weights: Any,
    words: Sequence[str],
    counts: Sequence[int],
    *,
    frame: float = 0.02,
    frames: int | None = None,
    width: int = 7,
) -> list[Word]:
    """When each word was said, from the cross-attention of a model of speech such as Whisper (arXiv:2212.04356).

    The method is that of OpenAI's code, `whisper/timing.py`; the paper does not have it. The weights of each head are
    divided by their sum over the frames of the sound, standardized over tokens, and smoothed by a running median over
    frames. Time warping through the mean of the heads gives each token its first frame.

    Args:
        weights: `[heads, tokens, frames]` of heads that follow the sound; of the tokens of the words, and of one after
            them, at which the last word ends.
        words: their texts.
        counts: how many tokens each word has.
        frame: the seconds that a frame takes; Whisper's encoder has 50 a second.
        frames: how many frames the sound fills; by default all.
        width: of the median, odd.

    Returns:
        A `Word` for each.

    Raises:
        ValueError: `counts` do not add up to the tokens; weights are not finite; a number is out of its range.
    """
    shape = check_floats("`weights`", weights)
    if len(shape) != 3:
        raise ValueError(f"`weights` must have shape [heads, tokens, frames]; got {describe(weights)}.")
    integers = all(isinstance(one, int | np.integer) and one >= 1 for one in counts)
    if not integers or not words or len(words) != len(counts) or sum(counts) + 1 != shape[1]:
        raise ValueError(
            f"`counts` must say how many of the {shape[1] - 1} tokens, all but the last, each of the {len(words)} "
            f"words has; got {list(counts)}."
        )
    if type(frame) not in (int, float) or not 0 < frame < np.inf:
        raise ValueError(f"`frame` must be a number of seconds above 0; got {frame!r}.")
    check_positive(width=width)
    frames = shape[2] if frames is None else frames
    if not 1 <= frames <= shape[2] or width % 2 == 0:
        raise ValueError(f"`frames` must be at most {shape[2]}, and `width` odd; got {frames} and {width}.")
    maps = as_numpy(weights)[..., :frames]
    if not maps.size or not np.isfinite(maps).all():
        raise ValueError("`weights` must be finite, of at least one head; got none, or NaN or inf.")
    maps = maps / np.maximum(maps.sum(-1, keepdims=True), 1e-30)
    spread = maps.std(-2, keepdims=True)
    maps = (maps - maps.mean(-2, keepdims=True)) / np.where(spread == 0, 1, spread)
    rows, columns = time_warp(-median(maps, width).mean(0))
    starts = columns[np.searchsorted(rows, np.arange(shape[1]))] * frame
    bounds = np.cumsum([0, *counts])
    return [
        Word(text, float(starts[first]), float(starts[last]))
        for text, first, last in zip(words, bounds[:-1], bounds[1:], strict=True)
    ]


def median(array: np.ndarray, width: int) -> np.ndarray:
    """The running median over the last axis, mirrored at its ends.

    >>> import numpy as np
    >>> median(np.array([1.0, 9.0, 2.0, 3.0]), 3).tolist()
    [9.0, 2.0, 3.0, 2.0]
    """
    half = width // 2
    if half == 0 or array.shape[-1] <= half:
        return array
    padded = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(half, half)], mode="reflect")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width, axis=-1), axis=-1)


def align(weights: Any, *, by: str = "argmax", threshold: float = 0.2) -> set[Pair]:
    """The pairs of output and input tokens that a map aligns.

    "both" is the Argmax of SimAlign (Jalili Sabet et al. 2020, arXiv:2004.08728), "softmax" one direction of the
    thresholds of Dou & Neubig 2021 (arXiv:2101.08231); both compare hidden states instead of reading attention.

    Args:
        weights: `[queries, keys]` of cross-attention, of a head or a mean of heads.
        by: "argmax", the largest weight of each query; "softmax", every weight of at least `threshold`; or "both",
            weights that are the largest of their query and of their key.
        threshold: for "softmax".

    Returns:
        Pairs (query, key). A query that attends to nothing is in none.

    Raises:
        ValueError: weights are not of one head, or not finite.

    >>> import numpy as np
    >>> weights = np.array([[0.9, 0.1], [0.6, 0.4]])
    >>> sorted(align(weights)), sorted(align(weights, by="both"))
    ([(0, 0), (1, 0)], [(0, 0)])
    >>> sorted(align(weights, by="softmax"))
    [(0, 0), (1, 0), (1, 1)]
    """
    check_choice("by", by, ("argmax", "softmax", "both"))
    if len(check_floats("`weights`", weights)) != 2:
        raise ValueError(f"`weights` must have shape [queries, keys], of one head; got {describe(weights)}.")
    found = as_numpy(weights)
    if not np.isfinite(found).all():
        raise ValueError("`weights` must be finite; got NaN or inf.")
    if type(threshold) not in (int, float) or not np.isfinite(threshold):
        raise ValueError(f"`threshold` must be a finite number; got {threshold!r}.")
    if 0 in found.shape:
        return set()
    if by == "softmax":
        return {(int(i), int(j)) for i, j in np.argwhere(found >= threshold)}
    chosen = {(i, int(j)) for i, j in enumerate(found.argmax(-1)) if found[i].any()}
    return chosen if by == "argmax" else chosen & {(int(i), j) for j, i in enumerate(found.argmax(0))}


def alignment_error_rate(found: Iterable[Pair], sure: Iterable[Pair], possible: Iterable[Pair] = ()) -> float:
    """1 - (|A ∩ S| + |A ∩ P|) / (|A| + |S|): 0 if every sure pair is found, and nothing that is not possible.

    Och & Ney 2003 (doi:10.1162/089120103321337421).

    Args:
        found: A, pairs (query, key).
        sure: S, pairs that a person is sure of.
        possible: P, further pairs that are not wrong; sure ones are possible as well.

    >>> alignment_error_rate({(0, 0), (1, 1)}, sure={(0, 0)}, possible={(1, 1)})
    0.0
    >>> alignment_error_rate({(0, 0), (1, 1)}, sure={(0, 0), (1, 0)})
    0.5
    """
    a, s, p = (_pairs(name, one) for name, one in {"found": found, "sure": sure, "possible": possible}.items())
    p |= s
    if not a and not s:
        raise ValueError("`found` and `sure` must not both be empty: there is nothing to compare.")
    return 1 - (len(a & s) + len(a & p)) / (len(a) + len(s))


def _pairs(name: str, pairs: Any) -> set[Pair]:
    """A set of pairs, of which arrays and lists are made too.

    Raises:
        ValueError: they are not pairs of integers.
    """
    pairs = pairs.tolist() if hasattr(pairs, "tolist") else pairs
    found = [tuple(one) if isinstance(one, list) else one for one in pairs] if isinstance(pairs, Iterable) else [pairs]
    for one in found:
        if not (isinstance(one, tuple) and len(one) == 2 and all(isinstance(index, int | np.integer) for index in one)):
            raise ValueError(f"`{name}` must be pairs (query, key) of integers; got {describe(one)}.")
    return set(found)

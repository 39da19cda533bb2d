"""Scores of generated text beside references, from 0 to 1."""

from collections import Counter
from collections.abc import Iterable, Sequence


def chrf(found: Sequence[str], wanted: Sequence[str], orders: int = 6, beta: float = 2.0) -> float:
    """The F-score of n-grams of characters, without spaces (Popović 2015, "chrF", doi:10.18653/v1/W15-3049).

        chrF = (1 + β²) P R / (β² P + R),    P, R: precision and recall over all texts, means over n = 1 ... `orders`

    >>> chrf(["the cat"], ["the cat"]), chrf(["xyz"], ["the cat"])
    (1.0, 0.0)
    """
    precisions, recalls = [], []
    for n in range(1, orders + 1):
        ours, theirs = ([_ngrams("".join(text.split()), n) for text in texts] for texts in (found, wanted))
        common = sum((one & other).total() for one, other in zip(ours, theirs, strict=True))
        total, needed = sum(one.total() for one in ours), sum(one.total() for one in theirs)
        if total and needed:
            precisions.append(common / total)
            recalls.append(common / needed)
    return _f(_mean(precisions), _mean(recalls), beta)


def rouge_n(found: Sequence[str], wanted: Sequence[str], n: int = 1) -> float:
    """The F-score of n-grams of a text's words (Lin 2004, "ROUGE").

    >>> rouge_n("a b c".split(), "a c d e".split())
    0.5714285714285715
    """
    ours, theirs = _ngrams(tuple(found), n), _ngrams(tuple(wanted), n)
    common = (ours & theirs).total()
    return _f(common / max(ours.total(), 1), common / max(theirs.total(), 1))


def rouge_l(found: Sequence[str], wanted: Sequence[str]) -> float:
    """The F-score of the longest common subsequence of words.

    >>> rouge_l("a b c".split(), "a c b d".split())
    0.5714285714285715
    """
    longest = [0] * (len(wanted) + 1)
    for one in found:
        before = longest[:]
        for j, other in enumerate(wanted):
            longest[j + 1] = before[j] + 1 if one == other else max(before[j + 1], longest[j])
    return _f(longest[-1] / max(len(found), 1), longest[-1] / max(len(wanted), 1))


def _ngrams(symbols: Sequence, n: int) -> Counter:
    return Counter(symbols[i : i + n] for i in range(len(symbols) - n + 1))


def _f(precision: float, recall: float, beta: float = 1.0) -> float:
    total = beta**2 * precision + recall
    return (1 + beta**2) * precision * recall / total if total else 0.0


def _mean(numbers: Iterable[float]) -> float:
    numbers = list(numbers)
    return sum(numbers) / len(numbers) if numbers else 0.0

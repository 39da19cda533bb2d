"""Byte-pair encoding: frequent pairs of symbols are merged, so that common words are one token and others are several.

Sennrich, Haddow & Birch 2016, arXiv:1508.07909.
"""

import heapq
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable

PAD, START, END, UNKNOWN = range(4)
_WORDS = re.compile(r" ?[^\W\d_]+| ?\d+| ?[^\w\s]+|_|\s")


class Subwords:
    """A vocabulary of subwords, learned from texts.

    Words keep the space before them, so that decoding is joining. The first four tokens are special.

    Args:
        texts: what the merges are learned from.
        size: the largest number of tokens.

    >>> subwords = Subwords(["low lower lowest", "new newer newest"], size=24)
    >>> [subwords.tokens[i] for i in subwords.encode("lower newest")]
    ['low', 'er', ' newest']
    >>> subwords.decode(subwords.encode("lower newest"))
    'lower newest'
    """

    def __init__(self, texts: Iterable[str], size: int):
        words = Counter(word for text in texts for word in _WORDS.findall(text))
        symbols = sorted({letter for word in words for letter in word})
        self.tokens = ["<pad>", "<start>", "<end>", "<unknown>", *symbols][:size]
        self.ranks: dict[tuple[str, str], int] = {}
        self._learn(words, size)
        self._index = {token: index for index, token in enumerate(self.tokens)}
        self._known: dict[str, list[int]] = {}

    def _learn(self, words: Counter, size: int) -> None:
        spelled = {word: list(word) for word in words}
        counts: Counter = Counter()
        containing = defaultdict(set)
        for word, parts in spelled.items():
            for pair in itertools.pairwise(parts):
                counts[pair] += words[word]
                containing[pair].add(word)
        heap = [(-count, pair) for pair, count in counts.items()]
        heapq.heapify(heap)
        while len(self.tokens) < size and heap:
            count, best = heapq.heappop(heap)
            if -count != counts[best]:  # an old count; the present one is further down
                continue
            if -count < 2:
                break
            self.ranks[best] = len(self.ranks)
            self.tokens.append("".join(best))
            changed = set()
            for word in containing.pop(best):
                old = spelled[word]
                new = spelled[word] = _merged(old, best)
                for sign, parts in ((-1, old), (1, new)):
                    for pair in itertools.pairwise(parts):
                        counts[pair] += sign * words[word]
                        changed.add(pair)
                        if sign > 0:
                            containing[pair].add(word)
            for pair in changed:
                heapq.heappush(heap, (-counts[pair], pair))

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        return [token for word in _WORDS.findall(text) for token in self._encode_word(word)]

    def _encode_word(self, word: str) -> list[int]:
        if word not in self._known:
            parts = list(word)
            while len(parts) > 1:
                pairs = itertools.pairwise(parts)
                best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
                if best not in self.ranks:
                    break
                parts = _merged(parts, best)
            self._known[word] = [self._index.get(part, UNKNOWN) for part in parts]
        return self._known[word]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens, without special ones."""
        return "".join(self.tokens[token] for token in tokens if token > UNKNOWN)


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    i = 0
    while i < len(parts):
        together = tuple(parts[i : i + 2]) == pair
        merged.append("".join(pair) if together else parts[i])
        i += 2 if together else 1
    return merged

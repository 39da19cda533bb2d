"""A small English corpus that comes with every Python: the help topics of `pydoc`, as bytes."""

import dataclasses
import re
from pydoc_data.topics import topics

import numpy as np

VOCABULARY = 256  # bytes
LONG_PARAGRAPH = 40  # characters; shorter paragraphs ("See also:") may repeat
HELD_OUT = 10  # the last tenth of every topic is held out
SHORT_TOPIC = 1000  # bytes; topics shorter than this are used for training only
_WORDS = re.compile(rb"[A-Z][a-z]+( [a-z]+,?)+ ?")


@dataclasses.dataclass(frozen=True)
class Text:
    """A stream of topics: every byte, and the index of the topic that it belongs to."""

    data: np.ndarray
    topic: np.ndarray

    def rows(self, starts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """`length + 1` bytes from each of the starts, and their topics: `[batch, length + 1]` each."""
        index = starts[:, None] + np.arange(length + 1)
        return self.data[index].astype(np.int32), self.topic[index]

    def batch(self, seed: int, step: int, batch: int, length: int) -> np.ndarray:
        """Where the rows of a step start. Depends only on the seed and step: a resumed run sees the same rows."""
        return np.random.default_rng([seed, step]).integers(len(self.data) - length, size=batch)

    def cover(self, batch: int, length: int) -> np.ndarray:
        """Starts of rows that cover the stream once, up to a remainder: `[batches, batch]`.

        A stream with fewer rows than one batch is repeated until the batch is full.
        """
        starts = np.arange(0, len(self.data) - length, length)
        return np.resize(starts, (max(len(starts) // batch, 1), batch))

    def excerpt(self, length: int) -> bytes:
        """The first `length` bytes of a paragraph that begins with plain words."""
        whole = self.data.tobytes()
        lines = [b" ".join(paragraph.split()) for paragraph in whole.split(b"\n\n")]
        plain = [line for line in lines if len(line) >= length and _WORDS.fullmatch(line[:length])]
        return (plain[0] if plain else whole)[:length]


def load() -> tuple[Text, Text]:
    """The training text and the held-out text.

    Many topics repeat paragraphs of others. Only the first copy of a paragraph is kept, so that held-out text does not
    occur in the training text.
    """
    seen: set[str] = set()
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        document = _without_seen(topics[name], seen).encode()
        cut = len(document) if len(document) < SHORT_TOPIC else len(document) - len(document) // HELD_OUT
        for part, piece in zip(parts, (document[:cut], document[cut:]), strict=True):
            if piece:
                part.append(piece)
    training, held_out = (_stream(part) for part in parts)
    return training, held_out


def _without_seen(document: str, seen: set[str]) -> str:
    kept = []
    for paragraph in document.split("\n\n"):
        words = " ".join(paragraph.split())
        if len(words) < LONG_PARAGRAPH or words not in seen:
            kept.append(paragraph)
        seen.add(words)
    return "\n\n".join(kept)


def _stream(documents: list[bytes]) -> Text:
    order = np.random.default_rng(0).permutation(len(documents))  # they are sorted by length; mix long and short
    documents = [documents[i] for i in order]
    lengths = [len(document) for document in documents]
    return Text(
        data=np.frombuffer(b"".join(documents), np.uint8),
        topic=np.repeat(np.arange(1, len(documents) + 1, dtype=np.int32), lengths),
    )


def unigram_entropy(train: np.ndarray, held_out: np.ndarray) -> float:
    """Bits per byte of the held-out text under the byte frequencies of the training text (plus one)."""
    counts = np.bincount(train, minlength=VOCABULARY) + 1.0
    return float(-np.log2(counts / counts.sum())[held_out].mean())


def bigram_entropy(train: np.ndarray, held_out: np.ndarray) -> float:
    """Bits per byte of the held-out text, given the byte before.

    p(b | a) = (n(a, b) + r(a) p(b)) / (n(a) + r(a)), where r(a) is the number of different bytes that follow a in the
    training text (Witten-Bell smoothing), and p(b) is the unigram above.
    """
    unigram = np.bincount(train, minlength=VOCABULARY) + 1.0
    unigram /= unigram.sum()
    counts = np.zeros((VOCABULARY, VOCABULARY))
    np.add.at(counts, (train[:-1], train[1:]), 1)
    followers = np.maximum((counts > 0).sum(1, keepdims=True), 1)
    probability = (counts + followers * unigram) / (counts.sum(1, keepdims=True) + followers)
    return float(-np.log2(probability[held_out[:-1], held_out[1:]]).mean())

"""Labeled pairs: which key each query ought to choose, and how often a head does.

A head is right about a query if its largest weight, among the keys that are candidates, is on a key that is right
(Clark et al. 2019, arXiv:1906.04341). Its baseline is the best fixed offset: always the key so many places before or
after the query, which needs no look at the tokens.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arguments import check_counts
from ..foundation.arrays import as_array, describe, dtype_of, known_values
from .rows import checked


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Which keys are right for which queries.

    Attributes:
        right: booleans `[examples, queries, keys]`; a query without a right key is not asked.
        among: booleans `[examples, queries, keys]`, the candidates.
    """

    right: np.ndarray
    among: np.ndarray

    def __post_init__(self):
        shapes = [np.shape(one) for one in (self.right, self.among)]
        fits = shapes[0] == shapes[1] and len(shapes[0]) == 3
        if not fits or dtype_of(self.right) != np.bool_ or dtype_of(self.among) != np.bool_:
            raise ValueError(
                "`right` and `among` must be booleans [examples, queries, keys] of one shape; got "
                f"{describe(self.right)} and {describe(self.among)}."
            )

    @property
    def asked(self) -> np.ndarray:
        """Booleans `[examples, queries]`: queries with a right key."""
        return np.any(self.right & self.among, axis=-1)


def labeled_pairs(
    pairs: Sequence[Any], q_len: int, kv_len: int | None = None, *, among: Sequence[Iterable[int]] | None = None
) -> Pairs:
    """`Pairs` from a list for each example.

    Args:
        pairs: for each example a list of `(query, key)`; a query may have several right keys.
        q_len, kv_len: the number of queries and keys, padding included; by default as many keys as queries.
        among: for each example the keys that are candidates; by default all, where queries are keys without the query
            itself.

    Raises:
        ValueError: an index is out of range; a right key is no candidate.

    >>> labeled_pairs([[(1, 0), (2, 0)]], 3).right[0].astype(int).tolist()
    [[0, 0, 0], [1, 0, 0], [1, 0, 0]]
    """
    kv_len = q_len if kv_len is None else kv_len
    check_counts(q_len=q_len, kv_len=kv_len)
    pairs = _lists("pairs", pairs, "(query, key)")
    right = np.zeros((len(pairs), q_len, kv_len), bool)
    candidates = np.ones_like(right) if among is not None or q_len != kv_len else right | ~np.eye(q_len, dtype=bool)
    among = None if among is None else _lists("among", among, "keys")
    if among is not None and len(among) != len(pairs):
        raise ValueError(f"`among` must have one list for each of {len(pairs)} examples; got {len(among)}.")
    for example, some in enumerate(pairs):
        if among is not None:
            keys = among[example]
            if not all(_is_int(one) and 0 <= one < kv_len for one in keys):
                raise ValueError(f"`among` must be indices from 0 to {kv_len - 1}; got {keys}.")
            candidates[example] = np.isin(np.arange(kv_len), keys)
        for pair in some:
            if not isinstance(pair, Sequence | np.ndarray) or len(pair) != 2 or not all(map(_is_int, pair)):
                raise ValueError(f"`pairs` must have a list of (query, key) for each example; got {describe(pair)}.")
            query, key = map(int, pair)
            if not (0 <= query < q_len and 0 <= key < kv_len):
                raise ValueError(
                    f"`pairs` must be of queries from 0 to {q_len - 1} and keys from 0 to {kv_len - 1}; got "
                    f"({query}, {key}) in example {example}."
                )
            if among is not None and not candidates[example, query, key]:
                raise ValueError(f"`among` must contain each right key; ({query}, {key}) of example {example} is not.")
            right[example, query, key] = candidates[example, query, key] = True
    return Pairs(right, candidates)


def dependency_pairs(heads: Sequence[Sequence[int]], length: int | None = None, *, reverse: bool = False) -> Pairs:
    """From each word to its syntactic head, or from each head to one of its dependents.

    Args:
        heads: for each sentence the index of the head of each word; -1 for the root.
        length: the number of words, padding included; by default that of the longest sentence.
        reverse: from heads to dependents.

    Raises:
        ValueError: a head is not a word of its sentence; sentences are longer than `length`.

    >>> dependency_pairs([[1, 2, -1]]).right[0].astype(int).tolist()  # the cat sleeps
    [[0, 1, 0], [0, 0, 1], [0, 0, 0]]
    """
    heads = _lists("heads", heads, "heads of words")
    for sentence in heads:
        if not all(_is_int(head) and -1 <= head < len(sentence) for head in sentence):
            raise ValueError(
                f"`heads` must be indices of the {len(sentence)} words of a sentence, -1 for the root; got {sentence}."
            )
    length = max(map(len, heads), default=0) if length is None else length
    found = [[(word, head) for word, head in enumerate(sentence) if head >= 0] for sentence in heads]
    return labeled_pairs([[(b, a) if reverse else (a, b) for a, b in some] for some in found], length)


def coreference_pairs(clusters: Sequence[Sequence[Sequence[int]]], length: int) -> Pairs:
    """From each mention to any earlier mention of the same thing, among all earlier mentions.

    Args:
        clusters: for each example a list of things, each a list of the tokens that mention it: of each mention the
            head word.
        length: the number of tokens, padding included.

    Raises:
        ValueError: a mention is not one of the tokens.

    >>> pairs = coreference_pairs([[[0, 4], [2]]], 5)
    >>> pairs.right[0, 4].nonzero()[0].tolist(), pairs.among[0, 4].nonzero()[0].tolist()
    ([0], [0, 2])
    """
    check_counts(length=length)
    clusters = [_lists("clusters", some, "mentions") for some in _lists("clusters", clusters, "things")]
    if bad := [one for some in clusters for thing in some for one in thing if not (_is_int(one) and 0 <= one < length)]:
        raise ValueError(f"`clusters` must be of tokens from 0 to {length - 1}; got {bad[0]!r}.")
    found = labeled_pairs(
        [[(b, a) for thing in some for a in thing for b in thing if a < b] for some in clusters], length
    )
    among = np.zeros_like(found.right)
    for example, some in enumerate(clusters):
        mentions = [token for thing in some for token in thing]
        among[example][:, mentions] = np.arange(length)[:, None] > np.array(mentions, int)
    return Pairs(found.right, among)


def pair_accuracy(weights: Any, pairs: Pairs, where: Any = None) -> jax.Array:
    """How often the largest weight among the candidates is on a right key, `[heads]`.

    A head that attends to no candidate at all is wrong.

    Args:
        weights: `[examples, heads, queries, keys]`.
        pairs: of the same sizes.
        where: booleans that broadcast with `weights`: pairs that count.

    >>> import numpy as np
    >>> weights = np.array([[[[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.1, 0.7, 0.2]]]])
    >>> pair_accuracy(weights, labeled_pairs([[(1, 0), (2, 0)]], 3)).tolist()
    [0.5]
    """
    weights, _ = checked(weights, where)
    _check_pairs(pairs, (*weights.shape[:-3], *weights.shape[-2:]))
    among = jnp.where(pairs.among[:, None], weights, -1)
    # Of equal weights the one that is wrong counts, so that a head that says nothing is not right by luck.
    best = among.max(-1)
    best_right = jnp.where(pairs.right[:, None] & pairs.among[:, None], weights, -1).max(-1)
    best_wrong = jnp.where(pairs.right[:, None], -1, among).max(-1)
    hit = (best_right == best) & (best_right > best_wrong) & (best > 0)
    asked = pairs.asked[:, None]
    return (hit & asked).sum((0, 2)) / max(int(pairs.asked.sum()), 1)


def best_offset(pairs: Pairs) -> tuple[int, float]:
    """The fixed offset from query to key that is right most often, and how often; `(0, 0.0)` if no query is asked.

    >>> best_offset(labeled_pairs([[(1, 0), (2, 0), (3, 2)]], 4))
    (-1, 0.6666666666666666)
    """
    if not isinstance(pairs, Pairs):
        raise ValueError(f"`pairs` must be `Pairs`, as `labeled_pairs` makes them; got {describe(pairs)}.")
    right = pairs.right & pairs.among
    asked = int(pairs.asked.sum())
    query, key = np.nonzero(right.any(0))
    if not asked:
        return 0, 0.0
    found = {}
    for offset in sorted(set((key - query).tolist()), key=abs):
        found[offset] = int(sum(np.diagonal(one, offset).sum() for one in right)) / asked
    best = max(found, key=lambda offset: found[offset])
    return best, found[best]


def merge_pieces(weights: Any, words: Sequence[int], key_words: Sequence[int] | None = None) -> jax.Array:
    """Maps of word pieces as maps of words: the sum over the pieces of a key, the mean over those of a query.

    So rows still sum to 1 (Clark et al. 2019).

    Args:
        weights: `[..., queries, keys]`.
        words: for each piece the index of its word, 0, 1, ...; -1 leaves it out, whatever its weights are.
        key_words: those of the keys, by default the same.

    >>> import numpy as np
    >>> merge_pieces(np.array([[0.5, 0.25, 0.25], [1, 0, 0], [0, 0.5, 0.5]]), [0, 1, 1]).tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    weights = as_array(weights)
    if dtype_of(weights) is None or weights.ndim < 2:
        raise ValueError(f"`weights` must be an array [..., queries, keys]; got {describe(weights)}.")
    given = [_word_indices("words", words)]
    given.append(given[0] if key_words is None else _word_indices("key_words", key_words))
    for name, one, length in zip(("words", "key_words"), given, np.shape(weights)[-2:], strict=True):
        name = "words" if key_words is None else name
        numbers = set(one.tolist()) - {-1}
        if one.shape != (length,) or numbers != set(range(len(numbers))):
            raise ValueError(
                f"`{name}` must give the word of each of {length} pieces, as numbers 0, 1, ... without gaps, or -1; "
                f"got {describe(one)} with {sorted(numbers)[:8]}."
            )
    kept = jnp.asarray(weights, jnp.float32)[..., given[0] >= 0, :][..., given[1] >= 0]
    query, key = (jax.nn.one_hot(one[one >= 0], one.max(initial=-1) + 1, axis=0) for one in given)  # [words, pieces]
    query = query / query.sum(-1, keepdims=True)
    return jnp.einsum("aq,...qk,bk->...ab", query, kept, key, precision="highest")


def _word_indices(name: str, words: Any) -> np.ndarray:
    array = as_array(words)
    known = known_values(array)
    if known is None or dtype_of(array) is None or not np.issubdtype(known.dtype, np.integer):
        raise ValueError(f"`{name}` must be known integers [pieces], the word of each or -1; got {describe(words)}.")
    return known


def _lists(name: str, given: Any, of: str) -> list[list[Any]]:
    """A list for each example.

    Raises:
        ValueError: it is something else.
    """
    given = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(given, Sequence) or any(isinstance(one, str) or not isinstance(one, Iterable) for one in given):
        raise ValueError(f"`{name}` must have a list of {of} for each example; got {describe(given)}.")
    return [list(one) for one in given]


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_pairs(pairs: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(pairs, Pairs) or pairs.right.shape != shape or pairs.among.shape != shape:
        got = f"pairs of shape {list(pairs.right.shape)}" if isinstance(pairs, Pairs) else describe(pairs)
        raise ValueError(
            f"`pairs` must be `Pairs` of shape {list(shape)} [examples, queries, keys], as `labeled_pairs` makes "
            f"them; got {got}."
        )

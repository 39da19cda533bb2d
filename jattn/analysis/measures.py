"""One number for each head: how broad its attention is, how far it reaches, where it rests.

They take weights A `[..., heads, queries, keys]`, after the normalizer and before dropout, and are functions of JAX:
`jax.jit`, `vmap` and `grad` apply. Unless said otherwise they return float32 `[heads]`, means over the queries of all
examples. Not counted are queries that attend to nothing, and pairs where `where` is False, such as those of padding. A
row that does not sum to 1, such as one of a sigmoid, is divided by its sum. Arguments of another shape or dtype raise a
`ValueError`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr

from ..foundation.arrays import as_array, describe, dtype_of, known_values
from .rows import booleans, checked, checked_queries, mean_of_rows, positions, probabilities, share_of


def entropy(weights: Any, where: Any = None, *, per_query: bool = False) -> jax.Array:
    """mean_i -Σ_j A_ij log A_ij, in nats: 0 for one key, log n for n keys alike (Ghader & Monz 2017, arXiv:1710.03348).

    Args:
        weights: `[..., heads, queries, keys]`.
        where: booleans that broadcast with `weights`: pairs that count.
        per_query: return `[..., heads, queries]` instead of the mean.

    >>> import numpy as np
    >>> print(entropy(np.array([[[1.0, 0.0], [0.5, 0.5]]])).round(3))
    [0.347]
    """
    weights, counts = checked(weights, where)
    return mean_of_rows(entr(probabilities(weights)).sum(-1), counts, per_query)


def confidence(weights: Any, where: Any = None, *, per_query: bool = False) -> jax.Array:
    """mean_i max_j A_ij: 1 if each query attends to one key (Voita et al. 2019, arXiv:1905.09418).

    There, the end-of-sentence token does not count as a maximum; here, every key does. Arguments as in `entropy`.

    >>> import numpy as np
    >>> print(confidence(np.array([[[1.0, 0.0], [0.5, 0.5]]])))
    [0.75]
    """
    weights, counts = checked(weights, where)
    return mean_of_rows(probabilities(weights).max(-1, initial=-jnp.inf), counts, per_query)


def mean_distance(weights: Any, where: Any = None, *, queries: Any = None, per_query: bool = False) -> jax.Array:
    """mean_i Σ_j A_ij |i - j|, in tokens (Vig & Belinkov 2019, arXiv:1906.04284).

    Args:
        weights, where, per_query: as in `entropy`.
        queries: integers `[queries]`, where each query is among the keys; by default `0, 1, ...`.

    >>> import numpy as np
    >>> print(mean_distance(np.array([[[1.0, 0.0], [0.5, 0.5]]])))
    [0.25]
    """
    weights, counts = checked(weights, where)
    query, key = positions(weights, queries)
    return mean_of_rows((probabilities(weights) * jnp.abs(query - key)).sum(-1), counts, per_query)


def offset_histogram(weights: Any, where: Any = None, *, queries: Any = None) -> tuple[np.ndarray, jax.Array]:
    """The share of attention at each offset j - i from a query to a key (Clark et al. 2019, arXiv:1906.04341).

    Args:
        weights, where: as in `entropy`.
        queries: as in `mean_distance`, with known values.

    Returns:
        The offsets `[offsets]`, and shares `[heads, offsets]` that sum to 1.

    >>> import numpy as np
    >>> offsets, shares = offset_histogram(np.array([[[1.0, 0.0], [0.5, 0.5]]]))
    >>> print(offsets, shares)
    [-1  0  1] [[0.25 0.75 0.  ]]
    """
    weights, counts = checked(weights, where)
    positions(weights, queries)
    q_len, kv_len = weights.shape[-2:]
    places = np.arange(q_len) if queries is None else known_values(checked_queries(queries, kv_len))
    if places is None:
        raise ValueError("`queries` must have known values, as they say which offsets there are; got traced ones.")
    apart = np.arange(kv_len) - places[:, None]
    offsets = np.arange(apart.min(), apart.max() + 1)
    mass = jnp.where(counts[..., None], probabilities(weights), 0)
    mass = mass.sum(tuple(range(mass.ndim - 3)))
    shares = jnp.zeros((mass.shape[0], len(offsets))).at[:, apart - offsets[0]].add(mass)
    return offsets, share_of(shares, shares.sum(-1, keepdims=True))


def sink_score(weights: Any, where: Any = None, *, key: int = 0, per_query: bool = False) -> jax.Array:
    """mean_i A_i0: how much rests on the first token (Xiao et al. 2023, arXiv:2309.17453).

    Args:
        weights, where, per_query: as in `entropy`.
        key: the index of another key.

    >>> import numpy as np
    >>> print(sink_score(np.array([[[1.0, 0.0], [0.5, 0.5]]])))
    [0.75]
    """
    weights, counts = checked(weights, where)
    integer = isinstance(key, int | np.integer) and not isinstance(key, bool)
    if not integer or not -weights.shape[-1] <= key < weights.shape[-1]:
        raise ValueError(f"`key` must be the index of one of {weights.shape[-1]} keys; got {describe(key)}.")
    return mean_of_rows(probabilities(weights)[..., key], counts, per_query)


def sink_rate(scores: Any, *, threshold: float = 0.3) -> jax.Array:
    """The share of heads whose sink score is above a threshold (Gu et al. 2024, arXiv:2410.10781).

    Args:
        scores: `sink_score` of all heads, of any shape, or a mapping of them by layer, as `Maps.each` returns.
        threshold: their ε.

    Raises:
        ValueError: there are no scores.

    >>> print(sink_rate({"0": [0.9, 0.1], "1": [0.4, 0.2]}))
    0.5
    """
    arrays = [as_array(one) for one in (scores.values() if isinstance(scores, Mapping) else [scores])]
    if any(dtype_of(one) is None for one in arrays) or not sum(one.size for one in arrays):
        raise ValueError(
            f"`scores` must be numbers of at least one head, or a mapping of such; got {describe(scores)}."
        )
    if dtype_of(np.asarray(threshold)) is None or np.ndim(threshold):
        raise ValueError(f"`threshold` must be a number; got {describe(threshold)}.")
    joined = jnp.concatenate([jnp.ravel(jnp.asarray(one)) for one in arrays])
    return jnp.where(jnp.isnan(joined).any(), jnp.nan, jnp.mean(joined > threshold))  # NaN is not below a threshold


def mass_on(weights: Any, keys: Any, where: Any = None, *, per_query: bool = False) -> jax.Array:
    """mean_i Σ_{j in keys} A_ij: how much goes to tokens of a kind (Clark et al. 2019, arXiv:1906.04341).

    Args:
        weights, where, per_query: as in `entropy`.
        keys: booleans `[..., keys]`, one row for each example or for all; `token_kinds` makes them.

    >>> import numpy as np
    >>> print(mass_on(np.array([[[1.0, 0.0], [0.5, 0.5]]]), np.array([False, True])))
    [0.25]
    """
    weights, counts = checked(weights, where)
    shape = np.shape(keys)
    fits = shape[-1:] == weights.shape[-1:] and len(shape) in (1, weights.ndim - 2)
    if not fits or any(have not in (1, want) for have, want in zip(shape[:-1], weights.shape[:-3], strict=False)):
        raise ValueError(
            f"`keys` must be booleans [..., {weights.shape[-1]}], one row for each example or for all; got "
            f"{describe(keys)}."
        )
    kind = booleans("keys", keys, f"[..., {weights.shape[-1]}]")[..., None, None, :]
    return mean_of_rows((probabilities(weights) * kind).sum(-1), counts, per_query)


SPECIAL = re.compile(r"\[[A-Z]+\d*\]|\[unused\d+\]|</?\w+>|<\|.*\|>|<｜.*｜>")
BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # as SentencePiece writes bytes of letters that are no token
BEGIN = "Ġ▁Ċ#"  # how tokenizers mark the beginning of a word, a new line, and the rest of a word
KINDS = ("special", "punctuation", "number", "word", "space")


def token_kinds(tokens: Sequence[str]) -> dict[str, np.ndarray]:
    """Which tokens are of which kind: special, punctuation, number, word or space.

    Args:
        tokens: texts, as a tokenizer gives them.

    Returns:
        For each kind booleans `[tokens]`; every token is of one kind. A byte beyond ASCII is of a word.

    Raises:
        ValueError: `tokens` is not a list of texts.

    >>> {kind: which.nonzero()[0].tolist() for kind, which in token_kinds(["[CLS]", "Ġa", "12", ",", "##b"]).items()}
    {'special': [0], 'punctuation': [3], 'number': [2], 'word': [1, 4], 'space': []}
    """
    if isinstance(tokens, str) or not isinstance(tokens, Sequence) or not all(isinstance(one, str) for one in tokens):
        raise ValueError(f"`tokens` must be a list of texts; got {describe(tokens)}.")
    found = []
    for token in tokens:
        if byte := BYTE.fullmatch(token):
            code = int(byte[1], 16)
            token = chr(code) if code < 128 else "a"
        ended = token.removesuffix("</w>") or token  # how CLIP and GPT mark the end of a word
        bare = ended.strip().strip(BEGIN).strip()
        if SPECIAL.fullmatch(token.strip()):
            found.append("special")
        elif any(letter.isalpha() for letter in bare):
            found.append("word")
        elif any(letter.isdigit() for letter in bare):
            found.append("number")
        else:
            found.append("punctuation" if bare or "#" in token else "space")
    return {kind: np.array([one == kind for one in found], bool) for kind in KINDS}

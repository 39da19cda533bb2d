"""What a head does, by the share of its attention on the pairs of a pattern D of zeros and ones.

    share = Σ_{i in R} Σ_j A_ij D_ij / Σ_{i in R} Σ_j A_ij        R: queries with at least one key of the pattern

| pattern | D_ij = 1 where |
|---|---|
| previous | j = i - 1 |
| next | j = i + 1 |
| current | j = i |
| first | j = 0 |
| duplicate | t_j = t_i and j < i |
| induction | t_{j-1} = t_i and j ≤ i: what followed the token the last times (Olsson et al. 2022, arXiv:2209.11895) |
| delimiter | t_j is special or punctuation, and j ≠ i |

With R all queries it is the score of TransformerLens's `detect_head`, which stays small for a pattern that few queries
have.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arguments import check_choice, check_key, check_positive
from ..foundation.arrays import as_array, describe
from .foreign import as_numpy, check_floats
from .rows import booleans, checked, checked_queries, positions, share_of

PATTERNS = ("previous", "next", "current", "first", "duplicate", "induction", "delimiter")


def pattern(name: str, tokens: Any, *, queries: Any = None, delimiters: Any = None) -> jax.Array:
    """The pairs of a named pattern, booleans `[..., queries, keys]`.

    Args:
        name: one of `PATTERNS`.
        tokens: integers `[..., keys]`, the tokens of the keys. Patterns of positions read their number alone.
        queries: integers `[queries]`, where each query is among the keys; by default all keys are queries.
        delimiters: for "delimiter", booleans `[..., keys]`.

    Raises:
        ValueError: there is no such pattern; an argument has another shape or dtype.

    >>> import numpy as np
    >>> print(pattern("induction", np.array([5, 7, 5, 7])).astype(int))
    [[0 0 0 0]
     [0 0 0 0]
     [0 1 0 0]
     [0 0 1 0]]
    """
    check_choice("name", name, PATTERNS)
    if not hasattr(tokens, "dtype") or not jnp.issubdtype(tokens.dtype, jnp.integer) or not tokens.ndim:
        raise ValueError(f"`tokens` must be integers [..., keys], of JAX or NumPy; got {describe(tokens)}.")
    length = tokens.shape[-1]
    key = jnp.arange(length)
    query = key if queries is None else jnp.asarray(checked_queries(queries, length))
    i, j = query[:, None], key[None]
    if name in ("previous", "next", "current", "first"):
        found = {"previous": j == i - 1, "next": j == i + 1, "current": j == i, "first": (j == 0) & (i >= 0)}[name]
        return jnp.broadcast_to(found, (*tokens.shape[:-1], *found.shape))
    if name == "delimiter":
        if delimiters is None:
            raise ValueError("`delimiters` must be booleans [..., keys] for the pattern 'delimiter'; got None.")
        ends = booleans("delimiters", delimiters, "[..., keys]")
        if ends.shape[-1:] != (length,):
            raise ValueError(f"`delimiters` must be booleans [..., {length}], as `tokens`; got {describe(delimiters)}.")
        return ends[..., None, :] & (i != j)
    own = jnp.take(tokens, query, axis=-1)[..., :, None]
    if name == "duplicate":
        return (own == tokens[..., None, :]) & (j < i)
    before = jnp.roll(tokens, 1, axis=-1)[..., None, :]
    return (own == before) & (j > 0) & (j <= i)


def pattern_share(weights: Any, pairs: Any, where: Any = None, *, every_query: bool = False) -> jax.Array:
    """The share of attention on the pairs of a pattern, `[heads]`; the module's docstring has the equation.

    Args:
        weights: `[..., heads, queries, keys]`.
        pairs: booleans `[..., queries, keys]`, without the axis of heads.
        where: booleans that broadcast with `weights`: pairs that count.
        every_query: let R be all queries.

    >>> import numpy as np
    >>> weights = np.array([[[1.0, 0.0], [0.75, 0.25]]])
    >>> pattern_share(weights, np.eye(2, k=-1, dtype=bool)).tolist()
    [0.75]
    """
    weights, counts = checked(weights, where)
    pairs = _aligned(pairs, weights)
    counts = counts if every_query else counts & pairs.any(-1)
    weights = jnp.where(counts[..., None], weights, 0)
    axes = tuple(axis for axis in range(weights.ndim) if axis != weights.ndim - 3)
    return share_of((weights * pairs).sum(axes), weights.sum(axes))


def chance(pairs: Any, may_attend: Any) -> jax.Array:
    """The share that a head would have that attends evenly to all keys that it may attend to.

    Args:
        pairs: booleans `[..., queries, keys]`.
        may_attend: booleans `[..., heads or 1, queries, keys]`.

    Returns:
        `[heads or 1]`.
    """
    even = _may(may_attend).astype(jnp.float32)
    even = even / jnp.maximum(even.sum(-1, keepdims=True), 1)
    return pattern_share(jnp.broadcast_to(even, (*np.shape(pairs)[:-2], *even.shape[-3:])), pairs)


def has_choice(pairs: Any, may_attend: Any) -> jax.Array:
    """Which queries may attend both to a key of the pattern and to another, `[..., 1, queries, 1]`.

    The first token of a causal model attends to itself, whatever the head does.

    Args:
        pairs, may_attend: as in `chance`.
    """
    pairs = booleans("pairs", pairs, "[..., queries, keys]")[..., None, :, :]
    may = _may(may_attend).any(-3, keepdims=True)
    return (may & pairs).any(-1, keepdims=True) & (may & ~pairs).any(-1, keepdims=True)


def prefix_matching(weights: Any, tokens: Any, *, queries: Any = None) -> jax.Array:
    """mean_i Σ_j A_ij over keys j that follow an earlier occurrence of token i, `[heads]`.

    The prefix-matching score of Olsson et al. 2022 (arXiv:2209.11895), if the tokens are random and repeated, as
    `repeated_tokens` makes them: nothing but the repetition can then say what comes next.

    Args:
        weights: `[..., heads, queries, keys]`.
        tokens: integers `[..., keys]`.
        queries: integers `[queries]`, where each query is among the keys.
    """
    positions(weights, queries)
    return pattern_share(weights, pattern("induction", as_array(tokens), queries=queries))


def repeated_tokens(key: jax.Array, batch: int, length: int, vocabulary: int, times: int = 2) -> jax.Array:
    """Random tokens, different within a sequence, and repeated: integers `[batch, times · length]`.

    Args:
        key: a random key.
        batch: the number of sequences.
        length: the number of tokens before they repeat.
        vocabulary: tokens are below it; at least `length`.
        times: how often they come.

    >>> import jax
    >>> tokens = repeated_tokens(jax.random.key(0), 1, 3, 10)[0]
    >>> bool((tokens[:3] == tokens[3:]).all()), len(set(tokens.tolist()))
    (True, 3)
    """
    check_key("key", key)
    check_positive(batch=batch, length=length, vocabulary=vocabulary, times=times)
    if length > vocabulary:
        raise ValueError(
            f"`length` must be at most `vocabulary`, so that tokens differ; got {length} and {vocabulary}."
        )
    rows = jax.vmap(lambda one: jax.random.permutation(one, vocabulary)[:length])(jax.random.split(key, batch))
    return jnp.tile(rows, (1, times))


def copying(embedding: Any, value: Any, output: Any, unembedding: Any) -> np.ndarray:
    """Σ Re λ / Σ |λ| over the eigenvalues λ of W_E W_V W_O W_U: 1 for a head that raises the tokens it attends to.

    The matrix is `[vocabulary, vocabulary]`, of rank D at most. Its eigenvalues other than 0 are those of
    W_O W_U W_E W_V, `[D, D]`, which is what is computed, in float64 (Elhage et al. 2021, "A Mathematical Framework for
    Transformer Circuits").

    Args:
        embedding: W_E `[vocabulary, features]`.
        value: W_V `[features, heads, D]`; fewer heads are shared, as in grouped-query attention.
        output: W_O `[heads, D, features]`.
        unembedding: W_U `[features, vocabulary]`.

    Returns:
        `[heads]`, from -1 to 1.

    >>> import numpy as np
    >>> eye = np.eye(4)
    >>> copying(eye, eye[:, None], np.stack([eye, -eye]), eye).tolist()
    [1.0, -1.0]
    """
    given = {"embedding": embedding, "value": value, "output": output, "unembedding": unembedding}
    for name, one in given.items():
        check_floats(f"`{name}`", one)
    embedding, value, output, unembedding = (_as_float64(one) for one in given.values())
    sizes = [one.shape for one in (embedding, value, output, unembedding)]
    if [len(size) for size in sizes] != [2, 3, 3, 2] or not (
        sizes[0][1] == sizes[1][0] == sizes[2][2] == sizes[3][0]
        and sizes[0][0] == sizes[3][1]
        and sizes[1][2] == sizes[2][1]
        and 0 not in sizes[1]
        and sizes[2][0] % sizes[1][1] == 0
    ):
        raise ValueError(
            "`embedding`, `value`, `output` and `unembedding` must have shapes [vocabulary, features], [features, "
            f"heads, D], [heads, D, features] and [features, vocabulary]; got {', '.join(map(str, sizes))}."
        )
    for name, one in zip(given, (embedding, value, output, unembedding), strict=True):
        if not np.isfinite(one).all():
            raise ValueError(f"`{name}` must be finite; got NaN or inf.")
    value = value.repeat(output.shape[0] // value.shape[1], 1)
    middle = unembedding @ embedding
    found: Any = np.linalg.eigvals(np.einsum("hdf,fg,ghe->hde", output, middle, value, optimize=True))
    return found.real.sum(-1) / np.maximum(np.abs(found).sum(-1), 1e-300)


def _as_float64(array: Any) -> np.ndarray:
    return as_numpy(array).astype(np.float64) if hasattr(array, "detach") else np.asarray(array, np.float64)


def _may(may_attend: Any) -> jax.Array:
    """Booleans `[..., heads or 1, queries, keys]`.

    Raises:
        ValueError: they are something else.
    """
    found = booleans("may_attend", may_attend, "[..., heads or 1, queries, keys]")
    if found.ndim < 3:
        raise ValueError(
            f"`may_attend` must be booleans [..., heads or 1, queries, keys]; got {describe(may_attend)}. "
            "For a mask of all heads: `may_attend[None]`."
        )
    return found


def _aligned(pairs: Any, weights: jax.Array) -> jax.Array:
    shape = np.shape(pairs)
    fits = len(shape) in (2, weights.ndim - 1) and shape[-2:] == weights.shape[-2:]
    if not fits or any(have not in (1, want) for have, want in zip(shape[:-2], weights.shape[:-3], strict=False)):
        raise ValueError(
            f"`pairs` must be booleans {[*weights.shape[:-3], *weights.shape[-2:]]} or {list(weights.shape[-2:])}; got "
            f"{describe(pairs)}."
        )
    return booleans("pairs", pairs, "[..., queries, keys]")[..., None, :, :]

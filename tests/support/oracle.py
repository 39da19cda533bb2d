"""The definition of attention in NumPy, written from the equations; it shares no code with the package.

Every equation is written once, over `graph.Num`: an array that remembers how it was made, so that exact reverse-mode
gradients follow from the forward equations. From float64 arrays it is the truth that implementations are compared
with; from arrays rounded to another dtype (`storage=`) it is the plain reference of that dtype, float32 inside,
whose own error against the truth sets the tolerance.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from graph import Num, einsum, exp, log, num, reshape, rounded, take, tanh, total, where

# Similarities: (query [b, q, h, d], key [b, k, h, d]) -> scores [b, h, q, k].


def dot(scale: Any = 1.0):
    """scale · q·k; a scale per head is [h]."""
    return lambda query, key: einsum("bqhd,bkhd->bhqk", query, key) * per_head(scale)


def scaled_dot():
    return lambda query, key: einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1]).astype(query.value.dtype)


def cosine(temperature: Any = 1.0):
    def length(x):
        return total(x**2, -1) ** 0.5

    def similarity(query, key):
        return einsum("bqhd,bkhd->bhqk", query / length(query), key / length(key)) / per_head(temperature)

    return similarity


def bilinear(weight: Num):
    """qᵀ W k with W [h, d, e], or [d, e] for all heads."""

    def similarity(query, key):
        turned = einsum("bqhd,de->bqhe" if len(weight.shape) == 2 else "bqhd,hde->bqhe", query, weight)
        return einsum("bqhe,bkhe->bhqk", turned, key)

    return similarity


def shared_bilinear(weight: Num):
    """(q W)·(k W) with W [d, e]."""
    return lambda query, key: einsum(
        "bqhe,bkhe->bhqk", einsum("bqhd,de->bqhe", query, weight), einsum("bkhd,de->bkhe", key, weight)
    )


def relative_dot(distances: Num, first: int, content: Any = 0.0, position: Any = 0.0):
    """((q + u)·k + (q + v)·a) / √d with a [h, distance, d] at the clipped key - query, u and v [h, d]."""

    def similarity(query, key):
        offsets = np.arange(key.shape[1]) - np.arange(query.shape[1])[:, None]
        chosen = take(distances, np.clip(offsets - first, 0, distances.shape[1] - 1), 1)  # [h, q, k, d]
        by_distance = einsum("bqhd,hqkd->bhqk", query + position, chosen)
        return (einsum("bqhd,bkhd->bhqk", query + content, key) + by_distance) * query.shape[-1] ** -0.5

    return similarity


def gaussian(gamma: Any):
    """-γ ‖q - k‖²; gamma a number or [h]."""

    def similarity(query, key):
        b, q, h, d = query.shape
        apart = reshape(query, (b, q, 1, h, d)) - reshape(key, (b, 1, key.shape[1], h, d))
        squared = reshape(total(apart**2, -1), (b, q, key.shape[1], h))
        return _heads_first(squared) * -per_head(gamma)

    return similarity


def additive(query_weight: Num, key_weight: Num, vector: Num, bias: Any = 0.0):
    """vᵀ tanh(W q + U k + b), W and U [d, a]."""

    def similarity(query, key):
        left, right = einsum("bqhd,da->bqha", query, query_weight), einsum("bkhd,da->bkha", key, key_weight)
        b, q, h, a = left.shape
        k = right.shape[1]
        inner = reshape(left, (b, q, 1, h, a)) + reshape(right, (b, 1, k, h, a)) + num(bias)
        return _heads_first(reshape(total(tanh(inner) * vector, -1), (b, q, k, h)))

    return similarity


def _heads_first(x: Num) -> Num:
    return Num(np.moveaxis(x.value, -1, 1), (x, lambda g: np.moveaxis(g, 1, -1)))


def per_head(x: Any) -> Num:
    """A number, or [h], over [b, h, q, k]."""
    x = num(x)
    return reshape(x, (-1, 1, 1)) if len(x.shape) == 1 else x


# Scores: (scores [b, h, q, k], query positions [.., 1, q, 1], key positions [.., 1, 1, k]) -> scores.


def bias(values: Num):
    return lambda scores, query, key: scores + values


def alibi(slopes: Num):
    return lambda scores, query, key: scores - per_head(slopes) * np.abs(query - key).astype(scores.value.dtype)


def gaussian_window(centers: Num, distance: Num):
    """Luong et al. (arXiv:1508.04025): the log of a Gaussian around centers [b, h, query], σ half of distance [h]."""

    def modify(scores, query, key):
        away = key.astype(scores.value.dtype) - reshape(centers, (*centers.shape, 1))
        return scores - away * away * 2 / (per_head(distance) * per_head(distance))

    return modify


def forget(log_gates: Num):
    """FoX (arXiv:2503.02130): the sum of log gates [b, h, key] behind the earlier of two tokens, up to the later."""

    def modify(scores, query, key):
        rows, columns = np.broadcast_arrays(query[..., 0, 0, :, :], key[..., 0, 0, :, :])
        at = np.arange(log_gates.shape[-1])[:, None, None]
        between = (np.minimum(rows, columns) < at) & (at <= np.maximum(rows, columns))
        return scores + einsum("bhl,lqk->bhqk", log_gates, num(between.astype(scores.value.dtype)))

    return modify


def soft_cap(cap: Any):
    return lambda scores, query, key: tanh(scores / per_head(cap)) * per_head(cap)


def scale(factor: Any):
    return lambda scores, query, key: scores * per_head(factor)


def relative_buckets(table: Num, bidirectional: bool = True, max_distance: int = 128):
    """T5 (arXiv:1910.10683): table [bucket, h] at the bucket of key - query, half exact and half logarithmic."""

    def bucket(offset):
        count = table.shape[0]
        found = 0
        if bidirectional:
            count //= 2
            found = count if offset > 0 else 0
            distance = abs(offset)
        else:
            distance = max(-offset, 0)
        exact = count // 2
        if distance < exact:
            return found + distance
        far = np.log(np.float32(distance) / np.float32(exact)) / np.log(np.float32(max_distance / exact))
        return found + min(count - 1, exact + int(np.float32(far) * np.float32(count - exact)))

    def modify(scores, query, key):
        buckets = np.vectorize(bucket, otypes=[np.int64])(np.broadcast_arrays(key - query)[0])
        chosen = take(table, buckets.reshape(buckets.shape[-2:]), 0)  # [q, k, h]
        return scores + Num(np.moveaxis(chosen.value, -1, 0), (chosen, lambda g: np.moveaxis(g, 0, -1)))

    return modify


def relative_logits(logits: Num, first: int, of: Any = None):
    """Shaw et al. (arXiv:1803.02155): logits [b, h, q, distance] at clip(key - query); `of` has coordinates [b, q]."""

    def modify(scores, query, key):
        rows, columns = (query, key) if of is None else (of[:, None, :, None], of[:, None, None, :])
        whole = Num(
            np.broadcast_to(logits.value, (*scores.shape[:3], logits.shape[-1])).copy(),
            (logits, lambda g: _summed(g, logits.shape)),
        )
        index = np.broadcast_to(np.clip(columns - rows - first, 0, logits.shape[-1] - 1), scores.shape)

        def back(g):
            total = np.zeros(whole.shape, g.dtype)
            for place in np.ndindex(*g.shape):
                total[(*place[:3], index[place])] += g[place]
            return total

        return scores + Num(np.take_along_axis(whole.value, index, -1), (whole, back))

    return modify


def _summed(g: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    g = g.sum(tuple(range(g.ndim - len(shape))))
    return g.sum(tuple(axis for axis, size in enumerate(shape) if size == 1), keepdims=True)


def relative_grid(table: Num, rows: int, columns: int):
    """Swin (arXiv:2103.14030): table [offset, h] at the offset of the query's place from the key's; 0 beyond."""

    def offset(query, key):
        if max(query, key) >= rows * columns:
            return len(table.value)
        (y, x), (v, w) = divmod(query, columns), divmod(key, columns)
        return (y - v + rows - 1) * (2 * columns - 1) + x - w + columns - 1

    def modify(scores, query, key):
        places = np.vectorize(offset, otypes=[np.int64])(*np.broadcast_arrays(query, key))
        padded = Num(
            np.concatenate([table.value, np.zeros_like(table.value[:1])]), (table, lambda g: g[: len(table.value)])
        )
        chosen = take(padded, places.reshape(places.shape[-2:]), 0)  # [q, k, h]
        return scores + Num(np.moveaxis(chosen.value, -1, 0), (chosen, lambda g: np.moveaxis(g, 0, -1)))

    return modify


# Normalizers: (scores, allowed, both [b, h, q, k]) -> weights.


def softmax(sink: Any = None):
    """exp(s) / (Σ exp(s) + exp(sink)); sink [h], or [b, h, q, 1]."""

    def normalize(scores, allowed):
        top = _top(scores, allowed)
        mass = where(allowed, exp(where(allowed, scores, 0) - top), 0)
        whole = total(mass, -1)
        if sink is not None:
            whole = whole + exp(per_head(sink) - top)
        empty = whole.value == 0
        return where(empty, 0, mass / where(empty, 1, whole))

    return normalize


def sigmoid(bias: Any = 0.0):
    return lambda scores, allowed: where(allowed, 1 / (1 + exp(-(scores + per_head(bias)))), 0)


def relu(power: float = 1.0):
    """relu(s) / n^power, n the number of keys that the query may attend (arXiv:2309.08586)."""

    def normalize(scores, allowed):
        count = np.maximum(allowed.sum(-1, keepdims=True), 1).astype(scores.value.dtype)
        return where(allowed & (scores.value > 0), scores, 0) / count**power

    return normalize


def sparsemax():
    """argmin ‖p - s‖² on the simplex (arXiv:1602.02068): p = s - τ on its support, τ = (Σ s - 1) / |support|."""

    def normalize(scores, allowed):
        support = _support(scores.value, allowed, lambda top: (top.sum() - 1) / len(top))
        count = np.maximum(support.sum(-1, keepdims=True), 1).astype(scores.value.dtype)
        threshold = (total(where(support, scores, 0), -1) - 1) / count
        return where(support, scores - threshold, 0)

    return normalize


def entmax15():
    """Entmax with α = 1.5 (arXiv:1905.05702): p = (s/2 - τ)² on its support, with Σ p = 1."""

    def of_chosen(top):
        mean = top.mean()
        spread = (1 - ((top - mean) ** 2).sum()) / len(top)
        return mean - np.sqrt(spread) if spread >= 0 else np.inf

    def normalize(scores, allowed):
        half = scores * 0.5
        support = _support(half.value, allowed, of_chosen)
        count = np.maximum(support.sum(-1, keepdims=True), 1).astype(scores.value.dtype)
        mean = total(where(support, half, 0), -1) / count
        spread = (1 - total(where(support, half - mean, 0) ** 2, -1)) / count
        threshold = mean - where(spread.value > 0, spread, 1) ** 0.5
        return where(support, (half - threshold) ** 2, 0)

    return normalize


def _support(values: np.ndarray, allowed: np.ndarray, threshold: Callable[[np.ndarray], float]) -> np.ndarray:
    """The largest set of top values in which every value exceeds the threshold of the set."""
    support = np.zeros(allowed.shape, bool)
    for place in np.ndindex(allowed.shape[:-1]):
        row = np.where(allowed[place], values[place], -np.inf)
        order = np.argsort(-row, kind="stable")[: allowed[place].sum()]
        sizes = [n for n in range(1, len(order) + 1) if row[order[n - 1]] > threshold(row[order[:n]])]
        if sizes:
            support[(*place, order[: max(sizes)])] = True
    return support


def _top(scores: Num, allowed: np.ndarray) -> np.ndarray:
    """The largest allowed score of each row, 0 where there is none: a constant that cancels."""
    top = np.where(allowed, scores.value, -np.inf).max(-1, keepdims=True, initial=-np.inf)
    return np.where(np.isneginf(top), 0, top).astype(scores.value.dtype)


class Truth(NamedTuple):
    out: Num  # [batch..., q_len, q_heads, v_dim]
    lse: Num  # [batch..., q_len, q_heads]
    weights: Num  # [batch..., q_heads, q_len, kv_len], before dropout


def attention(
    query: Num,
    key: Num,
    value: Num,
    *,
    mask: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    similarity: Callable | None = None,
    scores: Sequence[Callable] = (),
    normalizer: Callable | None = None,
    query_positions: np.ndarray | None = None,
    key_positions: np.ndarray | None = None,
    dropout: np.ndarray | None = None,
    storage: Any = None,
) -> Truth:
    """out_i = Σ_j w_ij value_j, w_i = normalizer(scores(similarity(query_i, key_j)) | mask).

    The mask is a NumPy function of positions [b or 1, 1, q, 1] and [b or 1, 1, 1, k]; `dropout` holds the factors of
    the weights. All batch axes are one axis b to the pieces.
    """
    *batch, q_len, q_heads, _ = query.shape
    kv_len, kv_heads, v_dim = value.shape[-3:]

    def one_batch(x):
        return reshape(x, (int(np.prod(batch)), *x.shape[-3:]))

    group = np.repeat(np.arange(kv_heads), q_heads // kv_heads)
    query, key, value = (one_batch(x) for x in (query, key, value))
    key, value = take(key, group, 2), take(value, group, 2)
    rows = np.arange(q_len) if query_positions is None else np.asarray(query_positions)
    columns = np.arange(kv_len) if key_positions is None else np.asarray(key_positions)
    rows = rows.reshape(-1, 1, q_len, 1)
    columns = columns.reshape(-1, 1, 1, kv_len)

    scored = (similarity or scaled_dot())(query, key)
    for modify in scores:
        scored = modify(scored, rows, columns)
    allowed = np.ones((), bool) if mask is None else mask(rows, columns)
    allowed = np.broadcast_to(allowed, scored.shape)
    weights = (normalizer or softmax())(scored, allowed)
    kept = weights if dropout is None else weights * dropout.astype(weights.value.dtype)
    out = rounded(einsum("bhqk,bkhd->bqhd", rounded(kept, storage), value), storage)

    top = _top(scored, allowed)
    mass = total(where(allowed, exp(where(allowed, scored, 0) - top), 0), -1)
    empty = mass.value == 0
    lse = where(empty, -np.inf, log(where(empty, 1, mass)) + top)
    lse = Num(np.moveaxis(lse.value[..., 0], 1, 2), (lse, lambda g: np.moveaxis(g, 2, 1)[..., None]))
    return Truth(
        reshape(out, (*batch, q_len, q_heads, v_dim)),
        reshape(lse, (*batch, q_len, q_heads)),
        reshape(weights, (*batch, q_heads, q_len, kv_len)),
    )


STORAGE = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}

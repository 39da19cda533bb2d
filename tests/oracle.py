"""The definition of attention in NumPy, written from the equations; it shares no code with the package.

Every equation is written once, over `Num`: an array that remembers how it was made, so that exact reverse-mode
gradients follow from the forward equations. From float64 arrays it is the truth that implementations are compared
with; from arrays rounded to another dtype (`storage=`) it is the plain reference of that dtype, float32 inside,
whose own error against the truth sets the tolerance.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np


class Num:
    """An array, and for each of the arrays it was made from, how a cotangent flows back to it."""

    __array_ufunc__ = None  # `ndarray * Num` is left to Num

    def __init__(self, value: Any, *parents: tuple["Num", Callable[[np.ndarray], np.ndarray]]):
        self.value: Any = value if type(value) in (int, float) else np.asarray(value)  # Python numbers widen nothing
        self.parents = parents

    @property
    def shape(self) -> tuple[int, ...]:
        return np.shape(self.value)

    def __add__(self, other):
        other = num(other)
        return _broadcasting(self.value + other.value, (self, lambda g: g), (other, lambda g: g))

    def __mul__(self, other):
        other = num(other)
        return _broadcasting(
            self.value * other.value, (self, lambda g: g * other.value), (other, lambda g: g * self.value)
        )

    def __truediv__(self, other):
        other = num(other)
        value = self.value / other.value
        return _broadcasting(value, (self, lambda g: g / other.value), (other, lambda g: -g * value / other.value))

    def __pow__(self, power: float):
        return Num(self.value**power, (self, lambda g: g * power * self.value ** (power - 1)))

    def __neg__(self):
        return self * -1

    def __sub__(self, other):
        return self + -num(other)

    def __rsub__(self, other):
        return num(other) + -self

    def __rtruediv__(self, other):
        return num(other) / self

    __radd__ = __add__
    __rmul__ = __mul__


def num(value: Any) -> Num:
    return value if isinstance(value, Num) else Num(value)


def _broadcasting(value: np.ndarray, *parents) -> Num:
    def summed_to(shape, back):
        def flow(g):
            g = np.broadcast_to(back(g), np.shape(value))
            g = g.sum(tuple(range(g.ndim - len(shape))))
            return g.sum(tuple(i for i, size in enumerate(shape) if size == 1), keepdims=True)

        return flow

    return Num(value, *((parent, summed_to(parent.shape, back)) for parent, back in parents))


def exp(x: Num) -> Num:
    value = np.exp(x.value)
    return Num(value, (x, lambda g: g * value))


def log(x: Num) -> Num:
    return Num(np.log(x.value), (x, lambda g: g / x.value))


def tanh(x: Num) -> Num:
    value = np.tanh(x.value)
    return Num(value, (x, lambda g: g * (1 - value**2)))


def where(condition: np.ndarray, x: Any, y: Any) -> Num:
    """Elementwise choice; no cotangent flows, and no NaN comes, from what is not chosen."""
    x, y = num(x), num(y)
    value = np.where(condition, x.value, y.value)
    return _broadcasting(value, (x, lambda g: np.where(condition, g, 0)), (y, lambda g: np.where(condition, 0, g)))


def total(x: Num, axis: int | tuple[int, ...]) -> Num:
    """The sum over axes, which are kept with size 1."""
    return Num(x.value.sum(axis, keepdims=True), (x, lambda g: np.broadcast_to(g, x.shape)))


def reshape(x: Num, shape: Sequence[int]) -> Num:
    return Num(x.value.reshape(shape), (x, lambda g: g.reshape(x.shape)))


def take(x: Num, index: np.ndarray, axis: int) -> Num:
    """Slices of x along an axis, by an integer array of any rank."""

    def flow(g):
        back = np.zeros(x.shape, g.dtype)
        np.add.at(np.moveaxis(back, axis, 0), index, np.moveaxis(g, range(axis, axis + index.ndim), range(index.ndim)))
        return back

    return Num(np.take(x.value, index, axis), (x, flow))


def einsum(spec: str, x: Num, y: Num) -> Num:
    left, right, out = spec.replace("->", ",").split(",")

    def product(spec, a, b):
        return np.einsum(spec, a, b, optimize=True)

    return Num(
        product(spec, x.value, y.value),
        (x, lambda g: product(f"{out},{right}->{left}", g, y.value)),
        (y, lambda g: product(f"{out},{left}->{right}", g, x.value)),
    )


def rounded(x: Num, storage: Any) -> Num:
    """x as a dtype can hold it; the cotangent is stored in it too."""

    def store(value):
        return value if storage is None else value.astype(storage).astype(value.dtype)

    return Num(store(x.value), (x, store))


def gradients(outputs: Sequence[tuple[Num, np.ndarray]], inputs: Sequence[Num]) -> list[np.ndarray]:
    """Gradients of Σ output · cotangent with respect to the inputs."""
    order: list[Num] = []
    seen: set[int] = set()

    def visit(node):
        if id(node) not in seen:
            seen.add(id(node))
            for parent, _ in node.parents:
                visit(parent)
            order.append(node)

    flowing: dict[int, np.ndarray] = {}
    for node, cotangent in outputs:
        visit(node)
        flowing[id(node)] = flowing.get(id(node), 0) + cotangent
    for node in reversed(order):
        for parent, flow in node.parents if id(node) in flowing else ():
            flowing[id(parent)] = flowing.get(id(parent), 0) + flow(flowing[id(node)])
    return [flowing.get(id(item), np.zeros(item.shape)) for item in inputs]


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


# Normalisers: (scores, allowed, both [b, h, q, k]) -> weights.


def softmax(sink: Any = None):
    """exp(s) / (Σ exp(s) + exp(sink)); sink [h]."""

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

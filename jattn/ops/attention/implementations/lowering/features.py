"""Similarities that are sums over features, which a kernel adds up feature by feature.

    pair(q, k) = outer(Σ_f term(q_f, k_f, a_f))

The score of additive attention is such a sum, with `term(q, k, v) = v tanh(q + k)`, and so are distances such as
`-Σ_f |q_f - k_f|`. Where the sum is, and that its terms are elementwise, is read off the jaxpr of `Similarity.pair`. A
tile then needs no array `[q, k, features]`. Similarities that are no such sum are refused.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .expressions import RESHAPES, Axes, Builder, Expression, Lacking, Node, Source, constant, in_order
from .inside import evaluate
from .limits import Limits
from .outside import guarded, may_be_singular
from .primitives import entries, spread

QUERY, KEY = "query feature", "key feature"


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureSum:
    """A similarity as a sum over features.

    Attributes:
        term: an expression of the features of a query and a key, and of parameters.
        outer: an expression of the scores, which are the sum.
        parameters: the places of the leaves with a number for each feature, or one for all.
        features: how many there are.
        guards: whether gradients of pairs whose cotangent is 0 must be set to 0, because they may be 0 times infinity.
    """

    term: Expression
    outer: Expression
    parameters: tuple[int, ...]
    features: int
    guards: bool

    @property
    def is_whole(self) -> bool:
        """Whether nothing happens to the sum."""
        return isinstance(self.outer.origin, Source)

    def number(self, query: Any, key: Any, parameters: Sequence[Any]) -> Any:
        """The term of one feature for the pairs of a tile, differentiable.

        Args:
            query: the feature of the queries, float32 `[1, q]`.
            key: of the keys, float32 `[k, 1]`.
            parameters: of each parameter its number for the feature, `[1, q]`.
        """
        shape = key.shape[0], query.shape[1]

        def compute(query: Any, key: Any, *parameters: Any) -> Any:
            numbers = dict(zip(self.parameters, parameters, strict=True)) | {QUERY: query, KEY: key}
            sources = {name: entries([one], ()) for name, one in numbers.items()}
            return spread(evaluate([self.term], sources)[0].reshape(-1)[0], shape, np.float32)

        if not self.guards:
            return compute(query, key, *parameters)
        return guarded(compute)(*(spread(one, shape, one.dtype) for one in (query, key, *parameters)))


def feature_sum(
    piece: Any, leaves: Sequence[Expression], dtypes: Sequence[Any], features: int, axes: Axes, limits: Limits
) -> FeatureSum:
    """Read a similarity as a sum over features.

    Args:
        piece: the similarity, with the place of its leaf in place of each array.
        leaves: the expressions of all leaves.
        dtypes: of the prepared query and key.
        features: of the prepared query and key.
        axes: of the call.
        limits: of the compiler.

    Raises:
        Lacking: it is no such sum, or a term needs what the compiler lacks.
    """
    places, tree = jax.tree.flatten(piece)
    sides = [
        Expression((*[1] * (axes.rank - 1), features), np.dtype(dtype), Source(name), of_scores=True)
        for name, dtype in zip((QUERY, KEY), dtypes, strict=True)
    ]

    def pair(*arrays: Any) -> Any:
        *own, query, key = arrays
        return tree.unflatten(own).pair(query, key)

    given = [*(leaves[place] for place in places), *sides]
    (value,) = Builder(axes, keep=True).trace(pair, given)
    found = [one for one in in_order([value]) if _is_sum(one, features)]
    if len(found) != 1:
        raise Lacking("an operation over the features of a pair other than one sum")
    node = found[0].origin
    assert isinstance(node, Node)
    inner = _Terms(axes, limits, features)
    total = Expression(found[0].shape, np.dtype(np.float32), Source("scores"), of_scores=True)
    outer = _replaced(value, found[0], total)
    while isinstance(outer.origin, Node) and outer.origin.name in RESHAPES:
        outer = outer.origin.operands[0]
    if any(isinstance(one.origin, Source) and one.origin.name in (QUERY, KEY) for one in in_order([outer])):
        raise Lacking("features of a query and a key outside of a sum over them")
    parts = [inner.of(one) for one in node.operands]
    term = parts[0] if len(parts) == 1 else Expression((), parts[0].dtype, Node("mul", {}, tuple(parts), node.apply))
    guards = not piece.finite and may_be_singular([term])
    return FeatureSum(term, outer, tuple(inner.parameters), features, guards)


def _is_sum(value: Expression, features: int) -> bool:
    """Whether a value is a sum over the features: of numbers, or of products of two."""
    node = value.origin
    if not isinstance(node, Node) or node.name not in ("reduce_sum", "dot_general"):
        return False
    return value.size == 1 and all(one.size == features for one in node.operands)


def _replaced(value: Expression, old: Expression, new: Expression) -> Expression:
    """An expression with another one in place of a part of it."""
    if value is old:
        return new
    if not isinstance(value.origin, Node):
        return value
    operands = tuple(_replaced(one, old, new) for one in value.origin.operands)
    if operands == value.origin.operands:
        return value
    return dataclasses.replace(value, origin=dataclasses.replace(value.origin, operands=operands))


class _Terms:
    """Expressions of one feature, from those of all features.

    Elementwise operations stay, and reshapes, which only move the axis of features, are left out.
    """

    def __init__(self, axes: Axes, limits: Limits, features: int):
        self._axes, self._limits, self._features = axes, limits, features
        self._done: dict[int, Expression] = {}
        self.parameters: list[int] = []

    def of(self, value: Expression) -> Expression:
        if id(value) not in self._done:
            self._done[id(value)] = self._source(value) if isinstance(value.origin, Source) else self._node(value)
        return self._done[id(value)]

    def _source(self, value: Expression) -> Expression:
        name = value.origin.name  # type: ignore[union-attr]
        if name == "constant" and np.unique(value.constant).size == 1:
            return constant(np.asarray(value.constant.reshape(-1)[0], value.dtype))
        if name in (QUERY, KEY):
            return dataclasses.replace(value, shape=(), dtype=np.dtype(np.float32))
        if not isinstance(name, int) or value.size not in (1, self._features):
            raise Lacking(f"an array {list(value.shape[self._axes.rank :])} for each feature of a pair")
        if value.along & {self._axes.query, self._axes.key}:
            raise Lacking("an array along queries or keys for each feature of a pair")
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise Lacking(f"an array of {np.dtype(value.dtype).name} for each feature of a pair")
        if name not in self.parameters:
            self.parameters.append(name)
        return dataclasses.replace(value, shape=(), dtype=np.dtype(np.float32))

    def _node(self, value: Expression) -> Expression:
        node = value.origin
        assert isinstance(node, Node)
        if value.size not in (1, self._features):
            raise Lacking(f"`{node.name}` of {value.size} numbers for each pair")
        if node.name in RESHAPES | {"copy"}:
            return self.of(node.operands[0])
        if node.name not in self._limits.primitives:
            raise Lacking(f"`{node.name}` for each feature of a pair")
        half = jnp.issubdtype(value.dtype, jnp.floating) and np.dtype(value.dtype).itemsize == 2
        if half or np.dtype(value.dtype).itemsize > 4:
            raise Lacking(f"numbers of {np.dtype(value.dtype).name} for each feature of a pair")
        operands = tuple(map(self.of, node.operands))
        return dataclasses.replace(value, shape=(), origin=dataclasses.replace(node, operands=operands))

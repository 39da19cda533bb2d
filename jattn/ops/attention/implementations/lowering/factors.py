"""Constant factors of scores, moved to where they cost nothing.

A soft cap is c tanh(s / c), of s = scale · product - slope · distance, say. As written, each pair takes two
multiplications by constants. But 1 / c may be part of `scale` and of `slope`, and c may wait until the exponent, which
is multiplied by log2(e) in any case:

    t = tanh((scale / c) product + (-slope / c) distance)
    exp(c t - m) = exp2(c log2(e) (t - m / c))

Only small factors of bounded functions wait, for which one rounding of the exponent is negligible. A difference
becomes a sum where the sign of its subtrahend costs nothing either, since the derivative of a difference has to negate.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .expressions import RESHAPES, Builder, Expression, Node, Source, constant, in_jax, in_order

BOUNDED = {"tanh", "logistic", "erf", "sin", "cos"}
"""Functions with values from -1 to 1."""

WAITING = 128.0
"""The largest factor that waits: numbers up to it are rounded by at most 2^-18."""

LARGE = 2.0**64
"""Factors above it, or below its inverse, stay where they are."""


def moved(values: Sequence[Expression], builder: Builder, *, waits: bool) -> tuple[float, list[Expression], float]:
    """Scores without the constant factors before the first of them and after the last.

    Args:
        values: the scores after each piece, as functions of those before it, the source "scores".
        builder: makes expressions.
        waits: whether a factor after the last may be left to the caller.

    Returns:
        The factor before, the functions, and the factor after.
    """
    found, before, after = list(values), 1.0, 1.0
    if found and waits:
        after, found[-1] = _multiple(found[-1])
    found = [_inside_distributed(_distributed(one, 1.0, builder) or one, builder) for one in found]
    for place in reversed(range(len(found))):
        factor, rest = _without_entrance(found[place])
        if place == 0:
            before, found[0] = factor, rest
        elif factor != 1.0:
            whole = _distributed(found[place - 1], factor, builder)
            if whole is not None:
                found[place - 1 : place + 1] = whole, rest
    return before, found, after


def _bare(value: Expression) -> Expression:
    """A number without the reshapes that it went through."""
    while isinstance(value.origin, Node) and value.size == 1 and value.origin.name in RESHAPES | {"copy"}:
        value = value.origin.operands[0]
    return value


def _is_scores(value: Expression) -> bool:
    return isinstance(value.origin, Source) and value.origin.name == "scores"


def _split(node: Any) -> tuple[float, Expression] | None:
    """The constant factor of a product or quotient, and the rest; None if there is none that may be moved."""
    if not isinstance(node, Node) or node.name not in ("mul", "div"):
        return None
    one, other = map(_bare, node.operands)
    if node.name == "mul" and one.constant is not None:
        one, other = other, one
    if other.constant is None or other.size != 1 or one.dtype != np.float32:
        return None
    factor = float(other.constant.reshape(()))
    if not 1 / LARGE < abs(factor) < LARGE:
        return None
    return factor if node.name == "mul" else 1 / factor, one


def _multiple(value: Expression) -> tuple[float, Expression]:
    """A positive factor and the bounded value that it multiplies; 1 and the value itself if it is none such."""
    factor, rest = 1.0, _bare(value)
    while (split := _split(rest.origin)) is not None:
        factor, rest = factor * split[0], split[1]
    bounded = isinstance(rest.origin, Node) and rest.origin.name in BOUNDED
    return (factor, rest) if bounded and 0 < factor <= WAITING else (1.0, value)


def _without_entrance(value: Expression) -> tuple[float, Expression]:
    """The one factor by which scores are multiplied wherever they enter, and the function of their products."""
    users = [
        one
        for one in in_order([value])
        if isinstance(one.origin, Node)
        and one.origin.name not in RESHAPES | {"copy"}
        and any(_is_scores(_bare(operand)) for operand in one.origin.operands)
    ]
    splits = [_split(one.origin) for one in users]
    factors = {None if split is None else split[0] for split in splits}
    factor = factors.pop() if len(factors) == 1 else None
    if factor is None:
        return 1.0, value
    scores = {
        id(one.origin): dataclasses.replace(_bare(split[1]), shape=one.shape)
        for one, split in zip(users, splits, strict=True)
        if split is not None
    }
    return factor, _replaced(value, scores)


def _replaced(value: Expression, instead: dict[int, Expression]) -> Expression:
    """A value with others in place of the results of some nodes, by the nodes' ids."""
    done: dict[int, Node] = {}

    def of(value: Expression) -> Expression:
        if not isinstance(value.origin, Node):
            return value
        found = instead.get(id(value.origin))
        return dataclasses.replace(value, origin=done[id(value.origin)]) if found is None else found

    for one in in_order([value]):
        node = one.origin
        if isinstance(node, Node) and id(node) not in done:
            done[id(node)] = dataclasses.replace(node, operands=tuple(map(of, node.operands)))
    return of(value)


def _inside_distributed(value: Expression, builder: Builder) -> Expression:
    """A value without the multiplications of a pair by constants that cost nothing elsewhere."""
    for one in in_order([value]):
        split = None if builder.axes.one_sided(one) else _split(one.origin)
        if split is None or _is_scores(split[1]):
            continue
        product = _distributed(split[1], split[0], builder, whole=value)
        if product is not None and product.shape == one.shape:
            return _inside_distributed(_replaced(value, {id(one.origin): product}), builder)
    return value


def _distributed(
    value: Expression, factor: float, builder: Builder, *, whole: Expression | None = None
) -> Expression | None:
    """A value, of which the whole makes no other use, times a factor, in no more operations for a pair; or None."""
    nodes = {id(one.origin): one.origin for one in in_order([value if whole is None else whole])}
    uses = Counter(id(one.origin) for node in nodes.values() if isinstance(node, Node) for one in node.operands)

    def node(name: str, function: Any, *operands: Expression) -> Expression:
        shape = np.broadcast_shapes(*(one.shape for one in operands))
        aval = jax.ShapeDtypeStruct(shape, np.dtype(np.float32))
        return builder.node(Node(name, {}, operands, in_jax(function, shape)), [aval])[0]

    def times(value: Expression, factor: float) -> Expression | None:
        same = value if factor == 1.0 else None
        if same is None and value.dtype != np.float32:
            return None
        if value.constant is not None:
            return same or constant(value.constant * np.float32(factor))
        origin = value.origin
        moved = inside(origin, factor) if isinstance(origin, Node) and uses[id(origin)] <= 1 else None
        if not builder.axes.one_sided(value) and not _is_scores(_bare(value)):
            return moved or same
        if same is not None:
            return same
        # A factor of what depends on neither side costs nothing: one operation more for each key may be too many.
        if moved is not None and isinstance(origin, Node) and origin.name in ("mul", "neg"):
            return moved
        return node("mul", jnp.multiply, value, constant(np.float32(factor)))

    def inside(origin: Node, factor: float) -> Expression | None:
        operands = origin.operands
        if origin.name == "mul":
            one, other = sorted(operands, key=lambda one: (one.constant is None) + len(builder.axes.sides(one)))
            for part, rest in ((one, other), (other, one)):
                product = times(part, factor)
                if product is not None:
                    return node("mul", jnp.multiply, product, rest)
        if origin.name == "neg":
            return times(operands[0], -factor)
        if origin.name in ("add", "sub"):
            parts = times(operands[0], factor), times(operands[1], factor if origin.name == "add" else -factor)
            if parts[0] is not None and parts[1] is not None:
                return node("add", jnp.add, parts[0], parts[1])
        return None

    return times(value, factor)

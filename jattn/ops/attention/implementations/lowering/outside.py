"""Values of one side, computed by XLA for all positions: aligned arrays that a kernel reads as fields.

A masked key has a cotangent of 0. Where the derivative of its value is infinite, the product would be NaN, so functions
that are not finite everywhere are guarded: where a cotangent is 0, so are the gradients.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .....foundation.functions import SINGULAR
from .expressions import Axes, Expression, Needs, Node, Source, in_order, operands_of


def everywhere(
    value: Expression, sources: Mapping[Any, Any], axes: Axes, places: tuple[Expression, np.ndarray] | None = None
) -> Any:
    """A value for all positions: `[batch..., head, query, key, *value.shape]`, with size 1 where it does not vary.

    Args:
        value: depends on sources alone, not on scores.
        sources: the aligned arrays by the names of their sources.
        axes: of the call.
        places: an expression behind the value, and numbers `[n]` to put in its place. The result then has one more
            axis of n before those of the value.
    """
    replaced = None if places is None else places[0]
    needs = _unless(replaced)
    needed = [one.origin for one in in_order([value], needs) if isinstance(one.origin, Source) and one is not replaced]
    given = {source.name: sources[source.name] for source in needed if source.name in sources}
    names, arrays = list(given), [jnp.asarray(one) for one in given.values()]
    along = sorted({axis for one in arrays for axis in range(axes.rank) if one.shape[axis] > 1})
    guard = may_be_singular([value])

    def one_pair(*parts: Any) -> Any:
        shapes = [(1,) * axes.rank + jnp.shape(array)[axes.rank :] for array in arrays]
        known = {name: part.reshape(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        if places is None:
            return compute([value], known, guard=guard)[0]

        index, numbers = places

        def at(place: Any) -> Any:
            return compute([value], known, guard=guard, instead=(index, place.reshape(index.shape)))[0]

        return jax.vmap(at)(jnp.asarray(numbers))

    function: Callable[..., Any] = one_pair
    for place, axis in reversed(list(enumerate(along))):
        before = along[:place]
        mapped = tuple(
            axis - sum(one.shape[other] > 1 for other in before) if one.shape[axis] > 1 else None for one in arrays
        )
        function = jax.vmap(function, mapped)
    found = function(*arrays)
    sizes = [max((one.shape[axis] for one in arrays), default=1) for axis in range(axes.rank)]
    return found.reshape(*sizes, *(() if places is None else places[1].shape), *value.shape)


def compute(
    values: Sequence[Expression],
    sources: Mapping[Any, Any],
    *,
    guard: bool = False,
    instead: tuple[Expression, Any] | None = None,
) -> list[Any]:
    """Values of one pair, in plain JAX.

    Args:
        values: what to compute.
        sources: the arrays of the shapes of their sources, by name.
        guard: whether gradients are 0 where cotangents are.
        instead: an expression, and the array that replaces it.
    """
    done: dict[int, list[Any]] = {}
    replaced = None if instead is None else instead[0]

    def read(value: Expression) -> Any:
        if instead is not None and value is replaced:
            return instead[1]
        origin = value.origin
        if isinstance(origin, Source):
            return sources.get(origin.name, origin.value)
        return done[id(origin)][value.index]

    for value in in_order(values, _unless(replaced)):
        node = value.origin
        if isinstance(node, Source) or value is replaced or id(node) in done:
            continue
        operands = [read(one) for one in node.operands]
        shape = node.operands[0].shape if node.operands else None
        plain = all(one.shape == shape for one in node.operands)
        if guard and plain and jnp.issubdtype(node.operands[0].dtype, jnp.inexact):
            done[id(node)] = guarded(lambda *given, apply=node.apply: apply(given))(*map(jnp.asarray, operands))
        else:
            done[id(node)] = node.apply(operands)
    return [read(value) for value in values]


def _unless(replaced: Expression | None) -> Needs:
    return lambda value: () if value is replaced else operands_of(value)


def may_be_singular(values: Sequence[Expression], needs: Needs = operands_of) -> bool:
    """Whether something on the way to the values may be infinite, or have an infinite derivative, for finite inputs."""
    return any(
        isinstance(one.origin, Node)
        and (one.origin.operands == () or bool(needs(one)))
        and one.origin.name in SINGULAR | {"custom_jvp_call"}
        and one.origin.params.get("y", -1) < 0
        and jnp.issubdtype(one.dtype, jnp.inexact)
        for one in in_order(values, needs)
    )


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """An elementwise function whose gradients are 0 where the cotangents of all results are.

    Its floating-point arguments must have the shape of the results.
    """

    @jax.custom_vjp
    def run(*operands: Any) -> Any:
        return function(*operands)

    def forward(*operands: Any) -> tuple[Any, Any]:
        return function(*operands), operands

    def backward(operands: Any, cotangents: Any) -> tuple[Any, ...]:
        floats = [jnp.issubdtype(one.dtype, jnp.inexact) for one in operands]

        def of_floats(*given: Any) -> Any:
            rest = iter(given)
            return function(*(next(rest) if is_float else one for one, is_float in zip(operands, floats, strict=True)))

        _, pull = jax.vjp(of_floats, *(one for one, is_float in zip(operands, floats, strict=True) if is_float))
        still = True
        for one in jax.tree.leaves(cotangents):
            if one.dtype != jax.dtypes.float0:
                still = still & (one == 0)
        gradients = iter(jnp.where(still, 0, one) for one in pull(cotangents))
        return tuple(
            next(gradients) if is_float else np.zeros(one.shape, jax.dtypes.float0)
            for one, is_float in zip(operands, floats, strict=True)
        )

    run.defvjp(forward, backward)
    return run

"""Evaluates expressions on a tile `[k, q]`, in a kernel.

Functions with their own derivative (`jax.custom_jvp`, `jax.custom_vjp`) keep it: the function and its derivative are
traced for one pair, and both are evaluated on the tile.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .expressions import CUSTOM, Axes, Builder, Expression, Node, Source, in_order, operands_of
from .primitives import REDUCTIONS, SHAPES, Entries, entries, number, reduced, spread


def evaluate(
    values: Sequence[Expression], sources: Mapping[Any, Entries], read: Mapping[int, "Read"] | None = None
) -> list[Entries]:
    """Values on a tile.

    Args:
        values: what to compute.
        sources: positions, scores and arguments, by name.
        read: what is not computed by its own equation, by the id of its expression.
    """
    read = read or {}
    done: dict[int, list[Entries]] = {}

    def needs(value: Expression) -> Sequence[Expression]:
        return read[id(value)].needs if id(value) in read else operands_of(value)

    def of(value: Expression) -> Entries:
        origin = value.origin
        if id(value) in read:
            return done[id(value)][0]
        if isinstance(origin, Node):
            return done[id(origin)][value.index]
        if origin.name in sources:
            return sources[origin.name].reshape(value.shape)
        constant = np.asarray(origin.value, value.dtype).reshape(-1)
        return entries([one.reshape(()) for one in np.split(constant, constant.size)], value.shape)

    for value in in_order(values, needs):
        if id(value) in read:
            done[id(value)] = [read[id(value)].get(*map(of, read[id(value)].needs))]
        elif isinstance(value.origin, Node) and id(value.origin) not in done:
            done[id(value.origin)] = _apply(value.origin, [of(one) for one in value.origin.operands])
    return [of(value) for value in values]


@dataclasses.dataclass(frozen=True)
class Read:
    """How a value is read: from fields, with the help of other values (`needs`)."""

    get: Callable[..., Entries]
    needs: tuple[Expression, ...] = ()


def _apply(node: Node, operands: list[Entries]) -> list[Entries]:
    name = node.name
    if name in SHAPES:
        return [SHAPES[name](node.params, *operands)]
    if name in REDUCTIONS:
        combine = REDUCTIONS[name]
        return [reduced(combine, operands[0], node.params["axes"], node.operands[0].dtype)]
    if name in CUSTOM:
        return _custom(node, operands)
    shape = max((one.shape for one in operands), key=len)
    shape = np.broadcast_shapes(*(one.shape for one in operands)) if operands else shape
    spread = [np.broadcast_to(one, shape).reshape(-1) for one in operands]
    dtypes = [one.dtype for one in node.operands]
    return [entries([number(name, node.params, dtypes, parts) for parts in zip(*spread, strict=True)], shape)]


_AXES = Axes(3)


def _custom(node: Node, operands: Sequence[Entries]) -> list[Entries]:
    """The results of a function with its own derivative, differentiable."""
    sizes = [one.size for one in operands]
    flat = [one for part in operands for one in part.reshape(-1)]
    dtypes = [one.dtype for one, size in zip(node.operands, sizes, strict=True) for _ in range(size)]
    shape = np.broadcast_shapes(*map(np.shape, flat))
    flat = [spread(one, shape, dtype) for one, dtype in zip(flat, dtypes, strict=True)]
    outs = node.equation.outvars

    def program(which: list[Expression], inputs: list[Expression], given: Sequence[Any]) -> list[Any]:
        """Results, as a list of the tiles of all their entries."""
        rest, sources = list(given), {}
        for one in inputs:
            sources[one.origin.name] = entries(rest[: one.size], one.shape)
            rest = rest[one.size :]
        found = [part for one in evaluate(which, sources) for part in one.reshape(-1)]
        types = [one.dtype for one in which for _ in range(one.size)]
        return [spread(one, shape, dtype) for one, dtype in zip(found, types, strict=True)]

    @jax.custom_vjp
    def run(*given: Any) -> list[Any]:
        return program(*primal(node), given)

    def forward(*given: Any) -> tuple[list[Any], Any]:
        return run(*given), given

    def backward(given: Any, cotangents: list[Any]) -> tuple[Any, ...]:
        floating = [jnp.issubdtype(one.dtype, jnp.inexact) for one in given]
        taken = [
            one
            for one, variable in zip(cotangents, _each(outs), strict=True)
            if jnp.issubdtype(variable.aval.dtype, jnp.inexact)
        ]
        gradients = iter(program(*pulled(node), (*given, *taken)))
        return tuple(
            next(gradients) if is_float else np.zeros(one.shape, jax.dtypes.float0)
            for one, is_float in zip(given, floating, strict=True)
        )

    run.defvjp(forward, backward)
    rest, results = list(run(*flat)), []
    for variable in outs:
        count = int(np.prod(variable.aval.shape))
        results.append(entries(rest[:count], variable.aval.shape))
        rest = rest[count:]
    return results


def _each(variables: Sequence[Any]) -> list[Any]:
    return [one for one in variables for _ in range(int(np.prod(one.aval.shape)))]


def primal(node: Node) -> tuple[list[Expression], list[Expression]]:
    """The results of the function, and the inputs that they are made of."""
    inputs = _arguments([one.aval for one in node.equation.invars])
    return Builder(_AXES, keep=False).inlined(node.equation, inputs), inputs


def pulled(node: Node) -> tuple[list[Expression], list[Expression]]:
    """The gradients of the floating-point operands, and the inputs: the operands, then cotangents of float results."""
    avals, outs = ([one.aval for one in part] for part in (node.equation.invars, node.equation.outvars))
    floating = [jnp.issubdtype(one.dtype, jnp.inexact) for one in avals]
    taken = [one for one in outs if jnp.issubdtype(one.dtype, jnp.inexact)]
    inputs = _arguments([*avals, *taken])

    def gradients(*given: Any) -> tuple[Any, ...]:
        values, cotangents = given[: len(avals)], given[len(avals) :]

        def of_floats(*floats: Any) -> list[Any]:
            rest = iter(floats)
            found = node.apply([next(rest) if one else value for one, value in zip(floating, values, strict=True)])
            return [one for one in found if jnp.issubdtype(one.dtype, jnp.inexact)]

        _, pull = jax.vjp(of_floats, *(one for one, is_float in zip(values, floating, strict=True) if is_float))
        return pull(list(cotangents))

    return Builder(_AXES, keep=False).trace(gradients, inputs), inputs


def _arguments(avals: Sequence[Any]) -> list[Expression]:
    return [
        Expression(tuple(one.shape), one.dtype, Source(("argument", place)), of_scores=True)
        for place, one in enumerate(avals)
    ]

"""Evaluates a jaxpr with intervals in place of numbers: one rule per equation, otherwise "anything"."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax.core import Tracer

from . import axes, bits, bounds, control, curves, points, primitives
from .bounds import Context, Interval
from .calls import known_call
from .resolution import together

_RULES = {**primitives.RULES, **bits.RULES, **curves.RULES, **axes.RULES}

_CALLS = {
    "jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat", "remat2", "checkpoint",
}  # fmt: skip
_LOOK_UPS = ("gather", "dynamic_slice")
_LOOKED_UP_WHOLE = ("searchsorted", "row_holds")

Watch = Callable[[tuple[Any, ...], list[Interval], bool], list[Interval]]
"""`watch(equations, results, known)` is called after each equation: the last of `equations`, the others being the calls
that contain it. It receives the results and whether anything is known about them, and returns the results to use."""


def evaluate(
    context: Context,
    jaxpr: Any,
    consts: Any,
    inputs: list[Interval],
    watch: Watch | None = None,
    within: tuple[Any, ...] = (),
) -> list[Interval]:
    """The intervals of the outputs of a jaxpr.

    Args:
        context: see `Context`.
        jaxpr: a jaxpr whose values have the own axes of the intervals.
        consts: its constants.
        inputs: the intervals of its inputs.
        watch: see `Watch`. Not called inside branches and loops.
        within: the calls that contain the jaxpr.
    """
    environment: dict[Any, Interval] = dict(zip(jaxpr.invars, inputs, strict=True))
    for variable, constant in zip(jaxpr.constvars, consts, strict=True):
        environment[variable] = _constant(context, constant, variable.aval)

    def read(atom):
        if not hasattr(atom, "val"):
            return environment[atom]
        return _constant(context, atom.val, atom.aval)

    for equation in jaxpr.eqns:
        path = (*within, equation)
        found = _found(context, path, [read(atom) for atom in equation.invars], watch)
        results = [bounds.everything(context, one.aval) for one in equation.outvars] if found is None else found
        if watch is not None:
            results = watch(path, results, found is not None)
        for variable, interval in zip(equation.outvars, results, strict=True):
            environment[variable] = interval
    return [read(atom) for atom in jaxpr.outvars]


def _constant(context: Context, value: Any, aval: Any) -> Interval:
    dtype = aval.dtype
    if not (bounds.is_float(dtype) or bounds.is_integer(dtype) or dtype == np.bool_):
        return bounds.everything(context, aval)
    if isinstance(value, Tracer):
        value = value.reshape((1,) * context.rank + value.shape)
        return bounds.held(context, bounds.round_outward(context, value))
    return bounds.exactly(context, value, dtype)


def _found(
    context: Context, path: tuple[Any, ...], operands: list[Interval], watch: Watch | None
) -> list[Interval] | None:
    equation = path[-1]
    name = equation.primitive.name
    if name in control.RULES:
        return control.RULES[name](context, equation, operands, evaluate)
    rule = _RULES.get(name)
    if name in _CALLS:
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if inner is None:
            return None
        rule = known_call(equation, inner) if hasattr(inner, "consts") else None
        if rule is None:
            jaxpr, consts = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
            return evaluate(context, jaxpr, consts, operands, watch, path)
    looks_up = name in _LOOK_UPS or equation.params.get("name") in _LOOKED_UP_WHOLE
    if not looks_up:
        operands = _of_one_rank(context, equation, operands)
    own = sum(int(np.prod(variable.aval.shape)) for variable in equation.outvars)
    agreed = together(context, operands, own if looks_up else None)
    if agreed is None:
        return None
    computed = points.by_array(context, equation, agreed)
    if computed is None and context.xp is not np:
        computed = points.by_primitive(context, equation, agreed)
    if computed is not None:
        return computed
    result = rule(context, equation, *agreed) if rule is not None and len(equation.outvars) == 1 else None
    if result is not None:
        return [result]
    # At trace time the primitive itself is the last resort, because it must be compiled.
    return points.by_primitive(context, equation, agreed) if context.xp is np else None


def _of_one_rank(context: Context, equation: Any, operands: list[Interval]) -> list[Interval]:
    """Give scalars that are combined with arrays, as in `select_n`, axes of size 1."""
    ranks = [len(atom.aval.shape) for atom in equation.invars]
    if len(set(ranks)) < 2:
        return operands
    own = max(ranks)
    return [
        bounds.same_for_both(one, lambda bound: bound.reshape(bound.shape + (1,) * own)) if rank == 0 else one
        for one, rank in zip(operands, ranks, strict=True)
    ]

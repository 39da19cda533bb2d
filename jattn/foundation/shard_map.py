"""Evaluate, inside `jax.shard_map`, a jaxpr that was traced outside it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal, Var

from .varying import vary, varying_axes


def evaluate_varying(jaxpr: Jaxpr, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """Evaluate a jaxpr on values inside `shard_map`.

    There, all operands of a primitive must vary over the same mesh axes. JAX's functions arrange this when they are
    traced inside; a jaxpr traced outside contains constants that vary over none, also in its branches and loops.
    Operands are therefore cast to vary over the axes that any of them varies over.
    """
    known: dict[Var, Any] = {}
    known.update(zip(jaxpr.constvars, constants, strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        results = apply_varying(equation, [read(atom) for atom in equation.invars])
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def apply_varying(equation: Any, values: Sequence[Any]) -> list[Any]:
    """The results of one equation of such a jaxpr, for the values of its inputs."""
    axes = varying_axes(values)
    typed = [
        jnp.asarray(value, jnp.result_type(atom.aval)) for value, atom in zip(values, equation.invars, strict=True)
    ]
    values = list(vary(typed, axes))
    rule = _RULES.get(equation.primitive.name)
    results = rule(equation, values, axes) if rule is not None and axes else None
    if results is not None:
        return list(results)
    parameters = equation.primitive.get_bind_params(equation.params)
    found = equation.primitive.bind(*values, **parameters)
    return list(found) if equation.primitive.multiple_results else [found]


def carries_alone(equation: Any) -> bool:
    """Whether a `scan` has only carries: no per-step inputs and no stacked outputs."""
    body = equation.params["jaxpr"].jaxpr
    inner = [variable.aval.shape for variable in (*body.invars, *body.outvars)]
    outer = [variable.aval.shape for variable in (*equation.invars, *equation.outvars)]
    return inner == outer  # a per-step slice has fewer axes than the array


def _within(closed: Any, axes: tuple[str, ...]) -> Callable[..., tuple[Any, ...]]:
    """A nested jaxpr as a function whose results vary over the axes."""
    return lambda *values: tuple(vary(evaluate_varying(closed.jaxpr, closed.consts, values), axes))


def _call(equation: Any, values: Sequence[Any], axes: tuple[str, ...]) -> Any:
    del axes
    inner = equation.params["jaxpr"]
    return evaluate_varying(inner.jaxpr, inner.consts, values)


def _cond(equation: Any, values: list[Any], axes: tuple[str, ...]) -> Any:
    which, *operands = values
    return jax.lax.switch(which, [_within(branch, axes) for branch in equation.params["branches"]], *operands)


def _scan(equation: Any, values: list[Any], axes: tuple[str, ...]) -> Any:
    if not carries_alone(equation):
        return None
    params = equation.params
    fixed = len(values) - len(equation.outvars)
    body = _within(params["jaxpr"], axes)

    def step(carry, _):
        return body(*values[:fixed], *carry), None

    return jax.lax.scan(step, tuple(values[fixed:]), None, length=params["length"])[0]


def _while(equation: Any, values: list[Any], axes: tuple[str, ...]) -> Any:
    params = equation.params
    of_test, of_body = params["cond_nconsts"], params["body_nconsts"]
    for_test, for_body, start = values[:of_test], values[of_test : of_test + of_body], values[of_test + of_body :]
    test, body = _within(params["cond_jaxpr"], axes), _within(params["body_jaxpr"], axes)
    return jax.lax.while_loop(
        lambda carry: test(*for_test, *carry)[0], lambda carry: body(*for_body, *carry), tuple(start)
    )


def _own(equation: Any, values: list[Any], axes: tuple[str, ...]) -> Any:
    """A primitive that JAX itself defines in terms of others."""
    del axes
    expand = getattr(equation.params.get("_prim"), "expand", None)
    return None if expand is None else jax.tree.leaves(expand(*values))


_RULES = {"jit": _call, "pjit": _call, "cond": _cond, "scan": _scan, "while": _while, "call_hi_primitive": _own}

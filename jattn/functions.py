"""A user's function of scalars, traced once, so that the arrays it closes over are arrays like any other.

Captured arrays must be leaves of the piece that holds the function: only then are they differentiated, batched and
sharded with it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var, jaxpr_as_fun

from .foundation.varying import vary, varying_axes


class Traced:
    """The jaxpr of a function of scalars; its captured constants are kept elsewhere and passed to `__call__`."""

    def __init__(self, function: Callable[..., Any], closed: ClosedJaxpr):
        self.function = function
        self.jaxpr = closed.jaxpr

    def __call__(self, constants: tuple[jax.Array, ...], *arguments: jax.Array) -> jax.Array:
        """Apply to arrays of arguments, elementwise, by broadcasting.

        `constants` may have been aligned: the axes in front of each constant's own then broadcast too.
        """
        ranks = [variable.aval.ndim for variable in self.jaxpr.constvars]
        signature = ",".join(f"({','.join(f'c{i}_{axis}' for axis in range(rank))})" for i, rank in enumerate(ranks))
        scalars = ",".join("()" for _ in arguments)
        signature = f"{signature}{',' if ranks else ''}{scalars}->()"

        def one(*values):
            constants, scalars = values[: len(ranks)], values[len(ranks) :]
            if varying_axes(values):
                return _evaluate_varying(self.jaxpr, constants, scalars)[0]
            return jaxpr_as_fun(ClosedJaxpr(self.jaxpr, constants))(*scalars)[0]

        dtypes = [variable.aval.dtype for variable in self.jaxpr.invars]
        given = [jnp.asarray(value).astype(dtype) for value, dtype in zip(arguments, dtypes, strict=True)]
        return jnp.vectorize(one, signature=signature)(*constants, *given)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Traced):
            return NotImplemented
        return self is other or (self.function is other.function and str(self.jaxpr) == str(other.jaxpr))

    def __hash__(self) -> int:
        return hash(self.function)

    def __repr__(self) -> str:
        return getattr(self.function, "__qualname__", repr(self.function))


def trace(function: Callable[..., Any], *dtypes: Any) -> tuple[Traced, tuple[jax.Array, ...], jax.ShapeDtypeStruct]:
    """The traced function, the arrays it closes over, and the shape and dtype of what it returns.

    Raises:
        ValueError: it decides something in Python that depends on its arguments.
    """
    scalars = [jax.ShapeDtypeStruct((), dtype) for dtype in dtypes]
    try:
        closed, result = jax.make_jaxpr(function, return_shape=True)(*scalars)
    except jax.errors.TracerBoolConversionError as error:
        raise ValueError(
            f"`function` must be one expression for all pairs; {getattr(function, '__qualname__', function)!r} asks in "
            "Python whether something holds. Write `&`, `|` and `~` for `and`, `or` and `not`, with each comparison in "
            "parentheses; `(a < b) & (b < c)` for `a < b < c`; and `jnp.where(condition, x, y)` for `x if condition "
            "else y`."
        ) from error
    return Traced(function, closed), tuple(closed.consts), result


def _evaluate_varying(jaxpr: Jaxpr, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """Evaluate a jaxpr that was traced outside `shard_map` on values inside it.

    There the operands of a primitive must all vary over the same mesh axes. Functions of JAX see to that when they are
    traced; a jaxpr traced elsewhere has numbers in it that vary over none.
    """
    known: dict[Var, Any] = {}
    known.update(zip(jaxpr.constvars, constants, strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        values = [read(atom) for atom in equation.invars]
        axes = varying_axes(values)
        typed = [
            jnp.asarray(value, jnp.result_type(atom.aval)) for value, atom in zip(values, equation.invars, strict=True)
        ]
        values = vary(typed, axes)
        if equation.primitive.name in ("jit", "pjit"):
            inner = equation.params["jaxpr"]
            results = _evaluate_varying(inner.jaxpr, inner.consts, values)
        else:
            parameters = equation.primitive.get_bind_params(equation.params)
            results = equation.primitive.bind(*values, **parameters)
            results = results if equation.primitive.multiple_results else [results]
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]

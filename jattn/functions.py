"""A user's function of scalars, traced once, so that the arrays it closes over are arrays like any other.

Captured arrays must be leaves of the piece that holds the function: only then are they differentiated, batched and
sharded with it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun


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
            closed = ClosedJaxpr(self.jaxpr, values[: len(ranks)])
            return jaxpr_as_fun(closed)(*values[len(ranks) :])[0]

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
    """The traced function, the arrays it closes over, and the shape and dtype of what it returns."""
    scalars = [jax.ShapeDtypeStruct((), dtype) for dtype in dtypes]
    closed, result = jax.make_jaxpr(function, return_shape=True)(*scalars)
    return Traced(function, closed), tuple(closed.consts), result

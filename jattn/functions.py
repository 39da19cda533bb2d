"""A user's function of scalars, traced once, so that the arrays it closes over are arrays like any other.

Captured arrays must be leaves of the piece that holds the function: only then are they differentiated, batched and
sharded with it.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var, jaxpr_as_fun

from .foundation.dependence import needed_inputs
from .foundation.identity import identity
from .foundation.tables import with_tables
from .foundation.varying import vary, varying_axes


class Traced:
    """The jaxpr of a function of scalars; its captured constants are kept elsewhere and passed to `__call__`.

    Equal to another if they do the same: the same equations, the same numbers written in them.

    Attributes:
        name: of the function.
        jaxpr: of scalars, and of the constants.
        reads: for each argument, whether the result depends on it.
    """

    def __init__(self, function: Callable[..., Any], closed: ClosedJaxpr):
        # The function itself is not kept: it may hold large arrays, and compiled programs are kept by this.
        self.name = getattr(function, "__qualname__", None) or repr(function)
        self.jaxpr = closed.jaxpr
        self.reads = tuple(needed_inputs(closed.jaxpr, [True] * len(closed.jaxpr.outvars)))
        self._identity = identity(closed.jaxpr, function)

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
        return self is other or self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        return self.name


def trace(function: Callable[..., Any], *dtypes: Any) -> tuple[Traced, tuple[jax.Array, ...], jax.ShapeDtypeStruct]:
    """The traced function, the arrays it closes over, and the shape and dtype of what it returns.

    Raises:
        ValueError: as `one_expression`.
    """
    scalars = [jax.ShapeDtypeStruct((), dtype) for dtype in dtypes]
    with one_expression("function", function):
        try:
            closed, result = jax.make_jaxpr(function, return_shape=True)(*scalars)
        except (jax.errors.TracerArrayConversionError, jax.errors.TracerIntegerConversionError):
            closed, result = jax.make_jaxpr(with_tables(function), return_shape=True)(*scalars)
    captured = (one if isinstance(one, jax.Array) else np.asarray(one) for one in closed.consts)
    return Traced(function, closed), tuple(captured), result


@contextlib.contextmanager
def one_expression(name: str, function: Any) -> Iterator[None]:
    """What JAX says of a function that asks for the value of a traced number, in words that name the remedy.

    Args:
        name: of the argument that the function is, or is a part of.
        function: of which the message speaks.

    Raises:
        ValueError: the function decides something in Python, or hands a traced number to NumPy or Python.
    """
    try:
        yield
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        found = [(doing, remedy) for kind, doing, remedy in _REMEDIES if isinstance(error, kind)]
        if not found:
            raise
        doing, remedy = found[0]
        what = getattr(function, "__qualname__", None) or repr(function)
        raise ValueError(f"`{name}` must be one JAX expression for all pairs; `{what}` {doing}. {remedy}") from error


_REMEDIES: tuple[tuple[type[Exception], str, str], ...] = (
    (
        jax.errors.TracerBoolConversionError,
        "asks in Python whether something holds",
        "Write `&`, `|` and `~` for `and`, `or` and `not`, with each comparison in parentheses; `(a < b) & (b < c)` "
        "for `a < b < c`; and `jnp.where(condition, x, y)` for `x if condition else y`.",
    ),
    (
        jax.errors.TracerIntegerConversionError,
        "indexes a list, or counts in Python, with a traced number",
        "Make an array of the list first: `jnp.asarray(table)[q]`.",
    ),
    (
        jax.errors.TracerArrayConversionError,
        "gives a traced number to NumPy",
        "Write `jnp` for `np`; an array of NumPy that is indexed by a position is `jnp.asarray(table)[q]`.",
    ),
    (
        jax.errors.ConcretizationTypeError,
        "makes a Python number of a traced one",
        "Write `x.astype(int)` for `int(x)`, `x.astype(float)` for `float(x)`, and `jnp.floor(x)` for `math.floor(x)`.",
    ),
    (
        jax.errors.NonConcreteBooleanIndexError,
        "indexes with a condition",
        "Write `jnp.where(condition, x, y)`.",
    ),
)


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

"""Compares programs by what they compute: two jaxprs with the same equations have the same identity.

JAX compiles once per function object, and an inline `lambda` is a new object in each call. What it computes is in its
jaxpr: primitives, parameters, literals. `identity` collects all of these in a hashable value, without variable names
and source lines. A parameter that cannot be compared (the derivative rule of `jax.custom_jvp`, a callback) equals only
itself, unless `same_code` and the derivative prove more.
"""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np
from jax.extend.core import (
    ClosedJaxpr,  # pyright: ignore[reportPrivateImportUsage]  (of JAX 0.12, where it is `Jaxpr`)
    Jaxpr,
    Literal,
    jaxpr_as_fun,
)
from jax.extend.linear_util import WrappedFun

from .code import Only, same_code


class Identity:
    """A hashable value whose hash is computed once."""

    __slots__ = ("_hash", "_value", "opaque")

    def __init__(self, value: Hashable, opaque: bool = False):
        self._value = value
        self._hash = hash(value)
        self.opaque = opaque  # whether it contains a parameter that equals only itself

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Identity):
            return NotImplemented
        return self is other or (self._hash == other._hash and self._value == other._value)

    def __hash__(self) -> int:
        return self._hash


def identity(jaxpr: Jaxpr, function: Callable[..., Any] | None = None) -> Identity:
    """What a jaxpr computes from its inputs and constants, as a value that can be compared.

    Args:
        jaxpr: of its own constants only shapes and dtypes count; the constants of nested jaxprs count by value.
        function: the function that was traced. Its `same_code` is used if the jaxpr alone cannot tell.

    >>> import jax, jax.numpy as jnp
    >>> def traced(width):
    ...     return identity(jax.make_jaxpr(lambda q, k: q - k < width)(0, 0).jaxpr)
    >>> traced(3) == traced(3), traced(3) == traced(4)
    (True, False)
    """
    found: list[Any] = []
    value = _of_jaxpr(jaxpr, found)
    if not found:
        return Identity(value)
    code = None if function is None else same_code(function)
    if code is None:
        return Identity((value, tuple(Only(one) for one in found)), opaque=True)
    return Identity((value, code, _of_derivative(jaxpr)), opaque=True)


def _of_derivative(jaxpr: Jaxpr) -> Hashable:
    """The identity of a jaxpr's derivative, in which derivative rules are expanded.

    Arrays held by these rules equal only themselves. Rules inside derivatives of rules are not expanded: rules with the
    same code are the same.
    """
    avals: list[Any] = [one.aval for one in (*jaxpr.constvars, *jaxpr.invars)]
    shapes = [jax.ShapeDtypeStruct(one.shape, one.dtype) for one in avals]
    count = len(jaxpr.constvars)
    floats = [place for place, one in enumerate(shapes) if jax.numpy.issubdtype(one.dtype, jax.numpy.inexact)]

    def pulled_back(values: list[Any]) -> Any:
        def run(given: list[Any]) -> Any:
            filled = list(values)
            for place, one in zip(floats, given, strict=True):
                filled[place] = one
            return jaxpr_as_fun(ClosedJaxpr(jaxpr, filled[:count]))(*filled[count:])

        out, pull = jax.vjp(run, [values[place] for place in floats])
        return out, pull([jax.numpy.ones_like(one) for one in out])

    try:
        traced = jax.make_jaxpr(pulled_back)(shapes)
    except (TypeError, NotImplementedError):  # it has no derivative
        return None
    return _of_jaxpr(traced.jaxpr, []), tuple(_of_array(one) for one in traced.consts)


def _of_jaxpr(jaxpr: Jaxpr, opaque: list[Any]) -> Hashable:
    numbers: dict[Any, int] = {}

    def bind(variables: Any) -> Hashable:
        for variable in variables:
            numbers[variable] = len(numbers)
        return tuple(_of_type(variable.aval) for variable in variables)

    def read(atom: Any) -> Hashable:
        if isinstance(atom, Literal):
            return _of_type(atom.aval), _of_array(atom.val)
        return numbers[atom]

    inputs = bind(jaxpr.constvars), bind(jaxpr.invars)
    equations = []
    for equation in jaxpr.eqns:
        operands = tuple(read(atom) for atom in equation.invars)
        parameters = tuple((name, _of_value(value, opaque)) for name, value in sorted(equation.params.items()))
        context = tuple(
            _of_value(getattr(getattr(equation, "ctx", None), name, None), opaque)
            for name in ("compute_type", "threefry_partitionable", "xla_metadata")
        )
        equations.append((equation.primitive.name, operands, parameters, context, bind(equation.outvars)))
    return inputs, tuple(equations), tuple(read(atom) for atom in jaxpr.outvars)


def _of_type(aval: Any) -> Hashable:
    if not hasattr(aval, "dtype"):
        return aval
    return aval.shape, aval.dtype, getattr(aval, "weak_type", False)


def _of_array(value: Any) -> Hashable:
    if isinstance(value, jax.Array):
        return Only(value)
    array = np.asarray(value)
    return array.shape, array.dtype, array.tobytes()  # bytes, as NaN equals itself here and -0.0 is not 0.0


def _of_value(value: Any, opaque: list[Any]) -> Hashable:
    """A parameter of an equation, with its type: 1, 1.0 and True are equal in Python."""
    if isinstance(value, ClosedJaxpr):
        return "jaxpr", _of_jaxpr(value.jaxpr, opaque), tuple(_of_array(one) for one in value.consts)
    if isinstance(value, Jaxpr):
        consts = getattr(value, "consts", ()) or ()
        return "jaxpr", _of_jaxpr(value, opaque), tuple(_of_array(one) for one in consts)
    if isinstance(value, (tuple, list)):
        return type(value), tuple(_of_value(one, opaque) for one in value)
    if isinstance(value, dict):
        return dict, tuple((name, _of_value(one, opaque)) for name, one in sorted(value.items(), key=repr))
    if isinstance(value, (np.ndarray, np.generic, jax.Array, float, complex)):
        return type(value), _of_array(value)
    if value is None or isinstance(value, (bool, int, str, bytes, type, np.dtype)):
        return type(value), value
    if not isinstance(value, WrappedFun) and (dataclasses.is_dataclass(value) or not callable(value)):
        try:
            hash(value)
        except TypeError:
            return Only(value)
        return type(value), value
    opaque.append(value)
    return "opaque"

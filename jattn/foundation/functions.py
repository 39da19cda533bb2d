"""Trace a user's function of scalars once, so that the arrays it closes over can be handled like any others.

Captured arrays become leaves of the piece that holds the function: only leaves are differentiated, batched and
sharded with the piece. `may_be_singular` tells whether a function needs care where it is not finite.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun  # pyright: ignore[reportPrivateImportUsage]  (of JAX 0.12)

from .elementwise import needed_inputs, one_expression
from .identity import identity
from .shard_map import evaluate_varying
from .sharding import varying_axes, without_mesh
from .tables import with_tables


class Traced:
    """The jaxpr of a function of scalars. Its captured constants are stored elsewhere and passed to `__call__`.

    Two are equal if they do the same: equal equations with equal literals.

    Attributes:
        name: the name of the function.
        jaxpr: takes the constants and the scalars.
        reads: for each argument, whether the result depends on it.
    """

    def __init__(self, function: Callable[..., Any], closed: ClosedJaxpr):
        # The function itself is not stored: it may hold large arrays, and the cache of compiled programs keeps this
        # object alive.
        self.name = getattr(function, "__qualname__", None) or repr(function)
        self.jaxpr: Any = closed.jaxpr
        self.reads = tuple(needed_inputs(closed.jaxpr, [True] * len(closed.jaxpr.outvars)))
        self._identity = identity(closed.jaxpr, function)

    def __call__(self, constants: tuple[jax.Array, ...], *arguments: jax.Array) -> jax.Array:
        """Apply the function elementwise to arrays, which broadcast.

        `constants` may have been aligned: extra leading axes of a constant broadcast too.
        """
        ranks = [variable.aval.ndim for variable in self.jaxpr.constvars]
        signature = ",".join(f"({','.join(f'c{i}_{axis}' for axis in range(rank))})" for i, rank in enumerate(ranks))
        scalars = ",".join("()" for _ in arguments)
        signature = f"{signature}{',' if ranks else ''}{scalars}->()"

        def one(*values):
            constants, scalars = values[: len(ranks)], values[len(ranks) :]
            if varying_axes(values):
                return evaluate_varying(self.jaxpr, constants, scalars)[0]
            return jaxpr_as_fun(ClosedJaxpr(self.jaxpr, constants))(*scalars)[0]

        dtypes = [variable.aval.dtype for variable in self.jaxpr.invars]
        given = [jnp.asarray(value).astype(dtype) for value, dtype in zip(arguments, dtypes, strict=True)]
        with jax.numpy_rank_promotion("allow"):  # positions and constants broadcast on purpose
            return jnp.vectorize(one, signature=signature)(*constants, *given)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Traced):
            return NotImplemented
        return self is other or self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        return self.name

    def __deepcopy__(self, memo: Any) -> "Traced":
        return self  # immutable, and a jaxpr cannot be copied


def takes_indices(function: Callable[..., Any], without: int, written: str) -> bool:
    """Whether a function also takes a batch index and a head index, judged by its number of arguments.

    Args:
        function: takes `without` arguments, or two more. Arguments with defaults count only if they are needed.
        without: the number of arguments without the indices.
        written: both signatures, for the message.

    Raises:
        ValueError: it takes another number of arguments.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):  # written in C, without a signature
        return False
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    least = sum(one.default is one.empty for one in positional)
    most = math.inf if any(one.kind == one.VAR_POSITIONAL for one in parameters) else len(positional)
    for count in (without, without + 2):
        if least <= count <= most:
            return count > without
    raise ValueError(f"`function` must take {written}; {function!r} takes {least} argument{'s' * (least != 1)}.")


def indices_of(piece: Any) -> tuple[Any, ...]:
    """The batch index and the head index for a piece's function, aligned; () if it takes none, 0 for one it ignores."""
    if len(piece.function.reads) < 4:
        return ()
    return tuple(np.int32(0) if index is None else index for index in (piece.examples, piece.heads))


def given_indices(traced: Traced, heads: Any, examples: Any) -> dict[str, Any]:
    """The index fields of a piece made from a function, as given by the user.

    Raises:
        ValueError: an index is not an array of integers, or the function does not take it.
    """
    given = {}
    for name, value, place in (("examples", examples, -4), ("heads", heads, -3)):
        if value is None:
            continue
        value = value if isinstance(value, jax.Array) else np.asarray(value)
        if len(traced.reads) < 4:
            raise ValueError(f"`{name}` is the index of a function of (batch, head, query, key); {traced} takes none.")
        if not jnp.issubdtype(value.dtype, jnp.integer) or (name == "heads" and value.ndim == 0):
            wanted = "[heads]" if name == "heads" else "[batch...]"
            raise ValueError(
                f"`{name}` must be integers {wanted}; got an array of dtype {value.dtype} and shape {value.shape}."
            )
        if traced.reads[place]:
            given[name] = value.astype(np.int32)
    return given


def fill_indices(piece: Any, batch: tuple[int, ...], q_heads: int, split: tuple[str, ...], reader: str) -> Any:
    """`Piece.indexed` for a piece made from a function: fill in the indices that it reads and that were not given.

    Raises:
        ValueError: an index is not known.
    """
    reads = piece.function.reads
    wanted = [
        name
        for name, place in (("examples", -4), ("heads", -3))
        if len(reads) >= 4 and reads[place] and getattr(piece, name) is None
    ]
    if not wanted:
        return piece
    if split:
        raise ValueError(
            f"`{reader}`: the function reads its {'batch' if wanted[0] == 'examples' else 'head'} index, which is not "
            f"known inside `jax.shard_map`: each device has a part of the arrays, split over the mesh axes {split}. "
            f"Give this device's indices, `{reader}(function, heads=..., examples=...)`; `jattn.parallel.Heads` "
            "does so by itself."
        )
    filled = {}
    if "examples" in wanted:
        if len(batch) != 1:
            raise ValueError(
                f"`{reader}`: the function reads its batch index, which counts along the one batch axis of the call; "
                f"this call has the batch axes {batch} (`jax.vmap` takes away the axis that it maps). Give the index: "
                f"`{reader}(function, examples=...)`, integers [batch...]."
            )
        filled["examples"] = np.arange(batch[0], dtype=np.int32)
    if "heads" in wanted:
        filled["heads"] = np.arange(q_heads, dtype=np.int32)
    return piece.replace(**filled)


def trace(function: Callable[..., Any], *dtypes: Any) -> tuple[Traced, tuple[Any, ...], jax.ShapeDtypeStruct]:
    """The traced function, the arrays it closes over, and the shape and dtype of its result.

    Raises:
        ValueError: as in `one_expression`.
    """
    scalars = [jax.ShapeDtypeStruct((), dtype) for dtype in dtypes]
    with one_expression("function", function), without_mesh():
        try:
            closed, result = jax.make_jaxpr(function, return_shape=True)(*scalars)
        except (jax.errors.TracerArrayConversionError, jax.errors.TracerIntegerConversionError) as error:
            try:
                closed, result = jax.make_jaxpr(with_tables(function), return_shape=True)(*scalars)
            except (AttributeError, TypeError):  # `jax.numpy` lacks the function, or has another signature
                raise error from None
    captured = (one if isinstance(one, jax.Array) else np.asarray(one) for one in closed.consts)
    return Traced(function, closed), tuple(captured), result


SINGULAR = {"acos", "acosh", "asin", "atan2", "atanh", "cbrt", "digamma", "div", "erf_inv", "exp", "exp2", "expm1"}
SINGULAR |= {"cosh", "custom_vjp_call", "igamma", "integer_pow", "lgamma", "log", "log1p", "pow", "rem", "rsqrt"}
SINGULAR |= {"sinh", "sqrt", "tan"}
"""Primitives whose result or derivative may be infinite for finite inputs."""


def may_be_singular(function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether a function contains a primitive that may be infinite, or have an infinite derivative, for finite inputs.

    >>> may_be_singular(lambda x: 2 * jnp.tanh(x), 1.0), may_be_singular(lambda x: 2 * jnp.sqrt(x), 1.0)
    (False, True)
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), arguments)
    return _singular(jax.make_jaxpr(function)(*shapes).jaxpr)


def _singular(jaxpr: Any) -> bool:
    for equation in jaxpr.eqns:
        inner = [one for value in equation.params.values() for one in jax.tree.leaves(value) if hasattr(one, "eqns")]
        inner += [one.jaxpr for one in jax.tree.leaves(equation.params) if hasattr(one, "jaxpr")]
        if any(map(_singular, inner)):
            return True
        floats = any(jnp.issubdtype(variable.aval.dtype, jnp.inexact) for variable in equation.outvars)
        if floats and equation.primitive.name in SINGULAR and equation.params.get("y", -1) < 0:
            return True
    return False

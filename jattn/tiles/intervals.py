"""What a mask says of whole tiles: its jaxpr, evaluated with intervals of positions in place of positions.

"Queries 512..639, keys 0..127" goes through the equations of `mask.allows`, for all tiles at once, and comes out as a
pair of booleans per tile: whether every pair is allowed, and whether any may be. An equation without a rule gives
"anything", so a tile is never skipped wrongly. Nothing larger than the grid of tiles is built.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..masks.base import Mask
from . import axes, bounds, primitives
from .bounds import Context, Interval
from .primitives import known_call

_RULES = {**primitives.RULES, **axes.RULES}

_CALLS = {
    "jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat", "remat2", "checkpoint",
}  # fmt: skip


def is_known(value: Any) -> bool:
    """Whether a value can be read while tracing: NumPy arrays and Python numbers."""
    return isinstance(value, (np.ndarray, np.generic, int, float))


def allowed_in_tiles(mask: Mask, query_positions: Any, key_positions: Any, q_tile: int, k_tile: int) -> Interval:
    """Per tile `[batch..., head, query tile, key tile]` (size 1 where all are alike): (all allowed, any allowed).

    Args:
        mask: aligned.
        query_positions: `[batch..., 1, q_len, 1]`, not empty.
        key_positions: `[batch..., 1, 1, kv_len]`, not empty.
        q_tile: queries of a tile; the last may have fewer.
        k_tile: keys of a tile, likewise.
    """
    rank = query_positions.ndim
    leaves, tree = jax.tree.flatten(mask)
    inputs = [*leaves, query_positions, key_positions]
    avals = [jax.ShapeDtypeStruct(jnp.shape(one)[rank:], jax.dtypes.canonicalize_dtype(one.dtype)) for one in leaves]
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    closed = jax.make_jaxpr(lambda leaves, q, k: jax.tree.unflatten(tree, leaves).allows(q, k))(avals, scalar, scalar)
    result = closed.out_avals[0] if len(closed.out_avals) == 1 else None
    if result is None or result.dtype != np.bool_ or result.shape != ():
        raise ValueError(
            f"`mask.allows` of {type(mask).__name__} must return one boolean for a pair of scalar positions; got "
            f"{closed.out_avals}. Write it with elementwise operations and a comparison."
        )
    known = all(is_known(one) for one in inputs) and not any(isinstance(constant, Tracer) for constant in closed.consts)
    tiles = -(-query_positions.shape[-2] // q_tile), -(-key_positions.shape[-1] // k_tile)
    lead = np.broadcast_shapes(*(jnp.shape(one)[: rank - 2] for one in inputs))
    xp = np if known else jnp
    context = Context(xp, rank, int(np.prod(lead)) * tiles[0] * tiles[1])
    with np.errstate(all="ignore"):
        intervals = [
            _extremes(context, one, variable.aval.dtype, q_tile, k_tile)
            for one, variable in zip(inputs, closed.jaxpr.invars, strict=True)
        ]
        (allowed,) = _evaluate(context, closed.jaxpr, closed.consts, intervals)
    return allowed


def _extremes(context: Context, value: Any, dtype: Any, q_tile: int, k_tile: int) -> Interval:
    """The smallest and largest of an aligned array in each tile."""
    xp = context.xp
    if not bounds.is_float(dtype) and dtype != np.bool_ and not bounds.is_integer(dtype):
        return bounds.everything(context, jax.ShapeDtypeStruct(value.shape[context.rank :], dtype))
    value = value.astype(dtype) if xp is np else jax.lax.stop_gradient(jnp.asarray(value, dtype))
    lo, hi = bounds.outward(context, value)
    for axis, size in ((context.rank - 2, q_tile), (context.rank - 1, k_tile)):
        if value.shape[axis] > 1 and size > 1:
            logical = dtype == np.bool_
            lo = _reduced(xp, lo, axis, size, "all" if logical else "min")
            hi = _reduced(xp, hi, axis, size, "any" if logical else "max")
    return bounds.held(context, Interval(lo, hi))


def _reduced(xp: Any, value: Any, axis: int, size: int, method: str) -> Any:
    length = value.shape[axis]
    if xp is np:
        function = {"all": np.logical_and, "any": np.logical_or, "min": np.minimum, "max": np.maximum}[method]
        return function.reduceat(value, np.arange(0, length, size), axis=axis)
    missing = -length % size
    if missing:
        padding = [(0, 0)] * value.ndim
        padding[axis] = (0, missing)
        value = jnp.pad(value, padding, mode="edge")
    shape = (*value.shape[:axis], -1, size, *value.shape[axis + 1 :])
    return getattr(value.reshape(shape), method)(axis + 1)


def _evaluate(context: Context, jaxpr: Any, consts: Any, inputs: list[Interval]) -> list[Interval]:
    environment: dict[Any, Interval] = dict(zip(jaxpr.invars, inputs, strict=True))
    for variable, constant in zip(jaxpr.constvars, consts, strict=True):
        environment[variable] = _constant(context, constant, variable.aval)

    def read(atom):
        if not hasattr(atom, "val"):
            return environment[atom]
        return _constant(context, atom.val, atom.aval)

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        for variable, interval in zip(equation.outvars, _apply(context, equation, operands), strict=True):
            environment[variable] = interval
    return [read(atom) for atom in jaxpr.outvars]


def _constant(context: Context, value: Any, aval: Any) -> Interval:
    dtype = aval.dtype
    if not (bounds.is_float(dtype) or bounds.is_integer(dtype) or dtype == np.bool_):
        return bounds.everything(context, aval)
    if isinstance(value, Tracer):
        value = value.reshape((1,) * context.rank + value.shape)
        return bounds.held(context, bounds.outward(context, value))
    return bounds.exactly(context, value, dtype)


def _apply(context: Context, equation: Any, operands: list[Interval]) -> list[Interval]:
    unknown = [bounds.everything(context, variable.aval) for variable in equation.outvars]
    name = equation.primitive.name
    if name in _CALLS:
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if inner is None:
            return unknown
        rule = known_call(equation, inner) if hasattr(inner, "consts") else None
        if rule is None:
            jaxpr, consts = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
            return _evaluate(context, jaxpr, consts, operands)
    else:
        rule = _RULES.get(name)
    if rule is None or len(unknown) != 1:
        return unknown
    ranks = [len(atom.aval.shape) for atom in equation.invars]
    own = max([*ranks, 0])
    if name not in ("gather", "dynamic_slice") and len(set(ranks)) > 1:
        # Scalars beside arrays, as in `select_n`.
        operands = [
            Interval(*(bound.reshape(bound.shape + (1,) * (own - rank)) for bound in one)) if rank == 0 else one
            for one, rank in zip(operands, ranks, strict=True)
        ]
    if operands:
        together = (
            np.broadcast_shapes(*(bound.shape for one in operands for bound in one))
            if (name not in ("gather", "dynamic_slice"))
            else ()
        )
        if int(np.prod(together)) > max(context.limit, *(one.lo.size for one in operands)):
            return unknown
    result = rule(context, equation, *operands)
    return unknown if result is None else [result]

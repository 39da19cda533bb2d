"""What a mask allows on whole tiles: its jaxpr, evaluated with intervals of positions in place of positions.

"Queries 512..639, keys 0..127" goes through the equations of `mask.allows`, for all tiles at once. The result is a pair
of booleans per tile: whether all pairs are allowed, and whether any may be. An equation without a rule gives
"anything", so a tile is never skipped wrongly. No array is larger than the lengths or the grid of tiles.
"""

import dataclasses
import math
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ....foundation.identity import identity
from ....masks.base import Mask
from . import axes, bits, bounds, control, curves, points, primitives
from .bounds import Context, Interval
from .calls import known_call
from .points import at_tiles, together

_RULES = {**primitives.RULES, **bits.RULES, **curves.RULES, **axes.RULES}

_CALLS = {
    "jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat", "remat2", "checkpoint",
}  # fmt: skip
_LOOK_UPS = ("gather", "dynamic_slice")
_LOOKED_UP_WHOLE = ("searchsorted", "row_holds")

Watch = Callable[[tuple[Any, ...], list[Interval], bool], list[Interval]]
"""`watch(equations, results, known)` is called after each equation: the last of `equations`, the others being the calls
that contain it. It receives the results and whether anything is known about them, and returns the results to use."""


def is_known(value: Any) -> bool:
    """Whether a value is known at trace time: a NumPy array or a Python number."""
    return isinstance(value, (np.ndarray, np.generic, int, float))


@dataclasses.dataclass(frozen=True)
class Question:
    """The question "which pairs does this mask allow": a jaxpr, and the aligned arrays that go into it.

    Attributes:
        closed: the jaxpr of the mask's arrays, the query position and the key position, without the layout's axes.
        inputs: `[batch..., head, query, key, own...]`; the positions are last.
        rank: the number of layout axes.
    """

    closed: Any
    inputs: list[Any]
    rank: int

    @property
    def known(self) -> bool:
        """Whether all inputs are known at trace time."""
        return all(is_known(one) for one in self.inputs) and not any(
            isinstance(constant, Tracer) for constant in self.closed.consts
        )

    @property
    def size(self) -> int:
        """The number of elements of all inputs."""
        return sum(math.prod(np.shape(one)) for one in (*self.inputs, *self.closed.consts))

    @property
    def identity(self) -> Hashable:
        """A hashable key of a known question. Equal for questions that are the same, bit for bit."""
        arrays = [np.asarray(one) for one in (*self.inputs, *self.closed.consts)]
        return identity(self.closed.jaxpr), tuple((one.shape, one.dtype, one.tobytes()) for one in arrays)

    @property
    def lengths(self) -> tuple[int, int]:
        """The numbers of queries and keys."""
        return self.inputs[-2].shape[-2], self.inputs[-1].shape[-1]

    @property
    def lead(self) -> tuple[int, ...]:
        """The sizes of the axes before the query axis; 1 where all entries are the same."""
        return np.broadcast_shapes(*(jnp.shape(one)[: self.rank - 2] for one in self.inputs))

    def allowed(self, q_tile: int, k_tile: int, watch: Watch | None = None) -> Interval:
        """(all pairs allowed, any pair allowed) per tile `[batch..., head, query tile, key tile]`.

        Axes on which all entries are the same have size 1.

        Args:
            q_tile: queries per tile; the last tile may have fewer.
            k_tile: keys per tile, likewise.
            watch: see `evaluate`.
        """
        cuts = tuple(zip(self.lengths, (q_tile, k_tile), strict=True))
        tiles = [-(-length // tile) for length, tile in cuts]
        limit = int(np.prod(self.lead)) * tiles[0] * tiles[1]
        context = Context(np if self.known else jnp, self.rank, limit, (cuts[0], cuts[1]))
        with np.errstate(all="ignore"):
            intervals = [
                _values(context, one, variable.aval.dtype)
                for one, variable in zip(self.inputs, self.closed.jaxpr.invars, strict=True)
            ]
            (allowed,) = evaluate(context, self.closed.jaxpr, self.closed.consts, intervals, watch)
            return at_tiles(context, at_tiles(context, allowed, 0), 1)


def ask(mask: Mask, query_positions: Any, key_positions: Any) -> Question:
    """The question for an aligned mask.

    Args:
        mask: aligned.
        query_positions: `[batch..., 1, q_len, 1]`, not empty.
        key_positions: `[batch..., 1, 1, kv_len]`, not empty.

    Raises:
        ValueError: `mask.allows` does not return one boolean for a pair of positions.
    """
    rank = query_positions.ndim
    leaves, tree = jax.tree.flatten(mask)
    avals = [jax.ShapeDtypeStruct(jnp.shape(one)[rank:], jax.dtypes.canonicalize_dtype(one.dtype)) for one in leaves]
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    closed = jax.make_jaxpr(lambda leaves, q, k: jax.tree.unflatten(tree, leaves).allows(q, k))(avals, scalar, scalar)
    result: Any = closed.out_avals[0] if len(closed.out_avals) == 1 else None
    if result is None or result.dtype != np.bool_ or result.shape != ():
        raise ValueError(
            f"`mask.allows` of {type(mask).__name__} must return one boolean for a pair of scalar positions; got "
            f"{closed.out_avals}. Write it with elementwise operations and a comparison."
        )
    return Question(closed, [*leaves, query_positions, key_positions], rank)


def _values(context: Context, value: Any, dtype: Any) -> Interval:
    """The interval of an aligned array, per position; an array of pairs is reduced to tiles."""
    if not bounds.is_float(dtype) and dtype != np.bool_ and not bounds.is_integer(dtype):
        return bounds.everything(context, jax.ShapeDtypeStruct(value.shape[context.rank :], dtype))
    if context.xp is np:
        value = np.asarray(value).astype(dtype, copy=False)
    else:
        value = jax.lax.stop_gradient(jnp.asarray(value, dtype))
    found = bounds.round_outward(context, value)
    if value.shape[context.rank - 2] > 1 and value.shape[context.rank - 1] > 1:
        found = at_tiles(context, at_tiles(context, found, 0), 1)
    return bounds.stored(context, found)


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
        return bounds.stored(context, bounds.round_outward(context, value))
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
    if context.xp is np and (result is None or not bounds.is_point(context, result)):
        # At trace time the primitive itself is the last resort, because it must be compiled. A rule may know nothing
        # of a single number either: of an entry past the end of a table, or of a sum that wraps around.
        computed = points.by_primitive(context, equation, agreed)
    return computed if computed is not None or result is None else [result]


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

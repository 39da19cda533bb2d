"""The rules of primitives that move a value's own axes (of tables and small constants, behind the layout's `rank`)."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from . import bounds
from .bounds import Context, Interval
from .primitives import Rule, is_number
from .tables import look_up, whole

RULES: dict[str, Rule] = {}
"""As in `primitives`."""


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def _dtype(equation: Any) -> np.dtype:
    return equation.outvars[0].aval.dtype


def _own(context: Context, array: Any) -> tuple[int, ...]:
    return array.shape[context.rank :]


def _spread(context: Context, equation: Any, operand: int, a: Interval) -> Interval | None:
    """Own axes of their full size, where they were left at 1 because the value repeats itself."""
    own = equation.invars[operand].aval.shape
    shapes = [(*bound.shape[: context.rank], *own) for bound in a]
    if any(np.prod(shape) > context.limit for shape in shapes) and any(_own(context, bound) != own for bound in a):
        return None
    return Interval(*(context.xp.broadcast_to(bound, shape) for bound, shape in zip(a, shapes, strict=True)))


def _reshaped(context: Context, bound: Any, own: tuple[int, ...]) -> Any:
    return bound.reshape((*bound.shape[: context.rank], *own))


@_rule("broadcast_in_dim")
def _broadcast_in_dim(context, equation, a, *_):
    shape, places = equation.params["shape"], equation.params["broadcast_dimensions"]

    def one(bound):
        own = [1] * len(shape)
        for place, size in zip(places, _own(context, bound), strict=True):
            own[place] = size
        return _reshaped(context, bound, tuple(own))

    return Interval(*(one(bound) for bound in a))


@_rule("reshape", "squeeze", "expand_dims")
def _reshape(context, equation, a, *_):
    own = equation.outvars[0].aval.shape
    if all(set(_own(context, bound)) <= {1} for bound in a):
        return Interval(*(_reshaped(context, bound, (1,) * len(own)) for bound in a))
    spread = _spread(context, equation, 0, a)
    return spread and Interval(*(_reshaped(context, bound, own) for bound in spread))


@_rule("slice")
def _slice(context, equation, a):
    spread = _spread(context, equation, 0, a)
    params = equation.params
    strides = params["strides"] or (1,) * len(params["start_indices"])
    place = tuple(slice(*cut) for cut in zip(params["start_indices"], params["limit_indices"], strides, strict=True))
    return spread and Interval(*(bound[(..., *place)] for bound in spread))


@_rule("reduce_or", "reduce_and", "reduce_max", "reduce_min")
def _reduce(context, equation, a):
    axes = equation.params["axes"]
    if any(equation.invars[0].aval.shape[axis] == 0 for axis in axes):
        return None
    method = {"reduce_or": "any", "reduce_and": "all", "reduce_max": "max", "reduce_min": "min"}
    if _dtype(equation) != np.bool_ and equation.primitive.name in ("reduce_or", "reduce_and"):
        return None
    if _dtype(equation) == np.bool_:
        method = {**method, "reduce_max": "any", "reduce_min": "all"}
    places = tuple(context.rank + axis for axis in axes)
    return Interval(*(getattr(bound, method[equation.primitive.name])(places) for bound in a))


@_rule("iota")
def _iota(context, equation):
    shape, axis = equation.params["shape"], equation.params["dimension"]
    if shape[axis] > context.limit:
        return None
    own = [1] * len(shape)
    own[axis] = shape[axis]
    return bounds.exactly(context, np.arange(shape[axis]).reshape(own), _dtype(equation))


@_rule("dynamic_slice")
def _dynamic_slice(context, equation, table, *starts):
    sizes, own = equation.params["slice_sizes"], equation.invars[0].aval.shape
    spread = _spread(context, equation, 0, table)
    if spread is None or len(starts) != len(own) or set(sizes) != {1} or 0 in own:
        return whole(context, table)
    return look_up(context, spread, [_clipped(context, one, size) for one, size in zip(starts, own, strict=True)])


def _clipped(context: Context, index: Interval, size: int) -> Interval:
    return Interval(*(context.xp.clip(bound, 0, size - 1).astype(np.int32) for bound in index))


@_rule("gather")
def _gather(context, equation, table, index):
    """One entry of a table with one axis, as `jnp.take(table, i)` asks for."""
    numbers, own = equation.params["dimension_numbers"], equation.invars[0].aval.shape
    one_entry = (
        len(own) == 1
        and equation.params["slice_sizes"] == (1,)
        and numbers.collapsed_slice_dims == (0,)
        and numbers.start_index_map == (0,)
        and equation.invars[1].aval.shape == (1,)
        and own[0] > 0
    )
    spread = _spread(context, equation, 0, table) if one_entry else None
    if spread is None:
        return None
    place = Interval(*(bound.reshape(bound.shape[: context.rank]) for bound in index))
    found = look_up(context, spread, [_clipped(context, place, own[0])])
    found = Interval(*(bound.reshape(bound.shape[: context.rank]) for bound in found))
    if equation.params["mode"] in (jax.lax.GatherScatterMode.CLIP, jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS):
        return found
    # Beyond the table comes a number of the mode's own.
    outside = (place.lo < 0) | (place.hi > own[0] - 1)
    if _dtype(equation) == np.bool_:
        return Interval(found.lo & ~outside, found.hi | outside)
    return bounds.replaced(context, _dtype(equation), outside, found) if is_number(equation) else None

"""Rules of primitives that move a value's own axes (those of tables and small constants, after the layout's `rank`)."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from . import bounds
from .bounds import Context, Interval
from .points import POSITIONS
from .primitives import Rule, is_number, registrar
from .tables import look_up

RULES: dict[str, Rule] = {}
"""See `primitives.RULES`."""


_rule = registrar(RULES)


def _dtype(equation: Any) -> np.dtype:
    return equation.outvars[0].aval.dtype


def _own(context: Context, array: Any) -> tuple[int, ...]:
    return array.shape[context.rank :]


def _spread(context: Context, equation: Any, operand: int, a: Interval) -> Interval | None:
    """Broadcast own axes to their full size, where they were kept at size 1 because all entries are equal."""
    own = equation.invars[operand].aval.shape
    if all(_own(context, bound) == own for bound in a):
        return a
    shapes = [(*bound.shape[: context.rank], *own) for bound in a]
    if any(np.prod(shape) > max(context.limit, POSITIONS) for shape in shapes):
        return None
    return bounds.same_for_both(a, lambda one: context.xp.broadcast_to(one, (*one.shape[: context.rank], *own)))


def _all_spread(context: Context, equation: Any, operands: Sequence[Interval]) -> list[Interval] | None:
    spreads = [_spread(context, equation, number, one) for number, one in enumerate(operands)]
    found = [one for one in spreads if one is not None]
    return found if len(found) == len(spreads) else None


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

    return bounds.same_for_both(a, one)


@_rule("reshape", "squeeze", "expand_dims")
def _reshape(context, equation, a, *_):
    own = equation.outvars[0].aval.shape
    if all(set(_own(context, bound)) <= {1} for bound in a):
        return bounds.same_for_both(a, lambda bound: _reshaped(context, bound, (1,) * len(own)))
    spread = _spread(context, equation, 0, a)
    return spread and bounds.same_for_both(spread, lambda bound: _reshaped(context, bound, own))


@_rule("slice")
def _slice(context, equation, a):
    spread = _spread(context, equation, 0, a)
    params = equation.params
    strides = params["strides"] or (1,) * len(params["start_indices"])
    place = tuple(slice(*cut) for cut in zip(params["start_indices"], params["limit_indices"], strides, strict=True))
    return spread and bounds.same_for_both(spread, lambda bound: bound[(..., *place)])


@_rule("transpose")
def _transpose(context, equation, a):
    axes = (*range(context.rank), *(context.rank + axis for axis in equation.params["permutation"]))
    return bounds.same_for_both(a, lambda bound: bound.transpose(axes))


@_rule("rev")
def _reverse(context, equation, a):
    axes = tuple(context.rank + axis for axis in equation.params["dimensions"])
    return bounds.same_for_both(a, lambda bound: context.xp.flip(bound, axes))


@_rule("concatenate", "stack")
def _concatenate(context, equation, *operands):
    spreads = _all_spread(context, equation, operands)
    if spreads is None:
        return None
    axis = context.rank + equation.params["dimension" if equation.primitive.name == "concatenate" else "axis"]
    if equation.primitive.name == "stack":
        spreads = [bounds.same_for_both(one, lambda bound: context.xp.expand_dims(bound, axis)) for one in spreads]
    lead = np.broadcast_shapes(*(bound.shape[: context.rank] for one in spreads for bound in one))

    def joined(parts):
        return context.xp.concatenate(
            [context.xp.broadcast_to(part, (*lead, *_own(context, part))) for part in parts], axis
        )

    lo = joined([one.lo for one in spreads])
    return Interval(lo, lo if all(one.lo is one.hi for one in spreads) else joined([one.hi for one in spreads]))


@_rule("sort")
def _sort(context, equation, a, *others):
    """The n-th smallest number increases with every number. For a single operand: others would be permuted with it."""
    spread = None if others else _spread(context, equation, 0, a)
    if spread is None or (bounds.is_float(_dtype(equation)) and context.xp is not np):
        return None
    if any(bool(np.isnan(bound).any()) for bound in spread if bound.dtype.kind == "f"):
        return None
    axis = context.rank + equation.params["dimension"]
    return bounds.same_for_both(spread, lambda bound: context.xp.sort(bound, axis=axis))


@_rule("argmax", "argmin")
def _argument(context, equation, a):
    """Between the first and the last element that can be the largest."""
    spread = _spread(context, equation, 0, a)
    (axis,) = equation.params["axes"]
    size = equation.invars[0].aval.shape[axis]
    if spread is None or size == 0 or spread.lo.dtype == np.bool_:
        return None
    xp, place = context.xp, context.rank + axis
    if equation.primitive.name == "argmax":
        chance = spread.hi >= spread.lo.max(place, keepdims=True)
    else:
        chance = spread.lo <= spread.hi.min(place, keepdims=True)
    chance = chance | ~chance.any(place, keepdims=True)  # NaN: any of them
    first = xp.argmax(chance, place)
    last = size - 1 - xp.argmax(xp.flip(chance, place), place)
    return Interval(first.astype(_dtype(equation)), last.astype(_dtype(equation)))


@_rule("reduce_sum")
def _sum(context, equation, a):
    """Sums of integers."""
    dtype = _dtype(equation)
    spread = _spread(context, equation, 0, a) if bounds.is_integer(dtype) else None
    places = tuple(context.rank + axis for axis in equation.params["axes"])
    return spread and _summed(context, dtype, spread, lambda bound, kind: bound.sum(places, dtype=kind))


@_rule("cumsum")
def _cumulative_sum(context, equation, a):
    dtype, axis = _dtype(equation), context.rank + equation.params["axis"]
    spread = _spread(context, equation, 0, a) if bounds.is_integer(dtype) else None
    if spread is None or equation.params["reverse"]:
        return None
    return _summed(context, dtype, spread, lambda bound, kind: context.xp.cumsum(bound, axis=axis, dtype=kind))


@_rule("dot_general")
def _dot(context, equation, a, b):
    """The dot product of two vectors of integers."""
    dtype = _dtype(equation)
    vectors = all(len(atom.aval.shape) == 1 for atom in equation.invars) and equation.outvars[0].aval.shape == ()
    alike = all(atom.aval.dtype == dtype for atom in equation.invars)
    spreads = _all_spread(context, equation, (a, b))
    if not vectors or not alike or not bounds.is_integer(dtype) or spreads is None:
        return None
    product = bounds.monotone(context, dtype, lambda x, y: x * y, bounds.every_corner, *spreads)
    return _summed(context, dtype, product, lambda bound, kind: bound.sum(context.rank, dtype=kind))


def _summed(context: Context, dtype: Any, a: Interval, total: Callable[[Any, Any], Any]) -> Interval:
    """Sums of numbers. Where a sum may overflow, nothing is known."""
    rough = [total(bound, np.float64 if context.xp is np else np.float32) for bound in a]
    low, high = (float(int(value)) for value in bounds.limits(dtype))
    margin = (high - low) * 2.0**-16
    inside = (rough[0] > low + margin if low else rough[0] >= 0) & (rough[1] < high - margin)
    found = bounds.same_for_both(a, lambda bound: total(bound, dtype))
    return bounds.replaced(context, dtype, ~inside, found)


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
    return bounds.same_for_both(a, lambda bound: getattr(bound, method[equation.primitive.name])(places))


@_rule("iota")
def _iota(context, equation):
    shape, axis = equation.params["shape"], equation.params["dimension"]
    if shape[axis] > max(context.limit, POSITIONS):
        return None
    own = [1] * len(shape)
    own[axis] = shape[axis]
    return bounds.exactly(context, np.arange(shape[axis]).reshape(own), _dtype(equation))


# --- lookups ---


def _clipped(context: Context, index: Interval, size: int) -> Interval:
    return bounds.same_for_both(index, lambda bound: context.xp.clip(bound, 0, size - 1).astype(np.int32))


def _entries(
    context: Context, equation: Any, table: Interval, places: dict[int, Interval], window: tuple[int, ...]
) -> Interval | None:
    """`table[places]`, with scalar indices for some own axes and all entries of the others (`window`).

    In the result the indexed axes come first, in the order of `places`, with size 1.
    """
    spread = _spread(context, equation, 0, table)
    if spread is None or 0 in equation.invars[0].aval.shape:
        return None
    rank = context.rank
    order = (*range(rank), *(rank + axis for axis in places), *(rank + axis for axis in window))
    spread = bounds.same_for_both(spread, lambda bound: bound.transpose(order))
    return look_up(context, spread, list(places.values()))


@_rule("dynamic_slice")
def _dynamic_slice(context, equation, table, *starts):
    """One entry, row, column, ... of a table: each axis is indexed or taken whole."""
    sizes, own = equation.params["slice_sizes"], equation.invars[0].aval.shape
    if len(starts) != len(own) or any(size not in (1, whole) for size, whole in zip(sizes, own, strict=True)):
        return None
    places = {
        axis: _clipped(context, start, own[axis])
        for axis, (start, size) in enumerate(zip(starts, sizes, strict=True))
        if size != own[axis]
    }
    window = tuple(axis for axis in range(len(own)) if axis not in places)
    found = _entries(context, equation, table, places, window)
    if found is None:
        return None
    back = np.argsort([*places, *window])
    order = (*range(context.rank), *(context.rank + int(axis) for axis in back))
    return bounds.same_for_both(found, lambda bound: bound.transpose(order))


@_rule("gather")
def _gather(context, equation, table, index):
    """One entry, row, column, ... of a table, as in `table[i]`, `table[i, j]` and `jnp.take(table, i)`."""
    numbers, own = equation.params["dimension_numbers"], equation.invars[0].aval.shape
    sizes, axes = equation.params["slice_sizes"], numbers.start_index_map
    one_entry = (
        equation.invars[1].aval.shape == (len(axes),)
        and set(numbers.collapsed_slice_dims) <= set(axes)
        and not numbers.operand_batching_dims
        and all(sizes[axis] == (1 if axis in axes else own[axis]) for axis in range(len(own)))
        and 0 not in own
    )
    spread = _spread(context, equation, 1, index) if one_entry else None
    if spread is None:
        return None
    rank = context.rank
    starts = {
        axis: bounds.same_for_both(spread, lambda bound, place=place: bound[(..., place)])
        for place, axis in enumerate(axes)
    }
    window = tuple(axis for axis in range(len(own)) if axis not in axes)
    places = {axis: _clipped(context, start, own[axis]) for axis, start in starts.items()}
    found = _entries(context, equation, table, places, window)
    if found is None:
        return None
    shape = equation.outvars[0].aval.shape
    found = bounds.same_for_both(found, lambda bound: bound.reshape((*bound.shape[:rank], *shape)))
    if equation.params["mode"] in (jax.lax.GatherScatterMode.CLIP, jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS):
        return found
    # Past the table, the result depends on the mode.
    outside = functools.reduce(
        operator.or_, [(start.lo < 0) | (start.hi > own[axis] - 1) for axis, start in starts.items()]
    )
    if context.xp is np and not np.any(outside):
        return found
    outside = outside.reshape(outside.shape + (1,) * len(shape))
    if _dtype(equation) == np.bool_:
        return Interval(found.lo & ~outside, found.hi | outside)
    return bounds.replaced(context, _dtype(equation), outside, found) if is_number(equation) else None

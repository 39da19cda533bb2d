"""Interval arithmetic that is sound for what XLA computes.

An `Interval` holds two arrays that broadcast over the grid of tiles. If nothing is known, integers have the whole range
of their dtype, booleans (False, True), and floats NaN in both bounds. Every comparison with NaN then gives "some",
which is also correct for a value that is NaN itself.
"""

import dataclasses
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ....foundation.numerics import accumulation_dtype


class Interval(NamedTuple):
    """`lo <= value <= hi` for every pair of a tile."""

    lo: Any
    hi: Any


@dataclasses.dataclass(frozen=True)
class Context:
    """Where and at which sizes intervals are computed.

    Attributes:
        xp: `numpy` (known at trace time) or `jax.numpy` (on the device).
        rank: the number of layout axes `[batch..., head, query, key]`, which come first in every array. The value's own
            axes follow, with size 1 where all entries are equal. The query and key axes have one entry per position or
            per tile, or size 1 (see `points`).
        limit: no array with more elements is built.
        cuts: `(length, tile)` of the query axis and of the key axis.
    """

    xp: ModuleType
    rank: int
    limit: int
    cuts: tuple[tuple[int, int], tuple[int, int]]

    def float_of(self, dtype: Any) -> Any:
        """The dtype of the bounds of a float. In NumPy, bounds may be more precise than the value."""
        return np.dtype(np.float64) if self.xp is np else accumulation_dtype(dtype)


def is_integer(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.integer)


def is_float(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def limits(dtype: Any) -> tuple[Any, Any]:
    """The smallest and the largest integer of a dtype, in that dtype."""
    info = jnp.iinfo(dtype)
    return np.asarray(info.min, dtype)[()], np.asarray(info.max, dtype)[()]


def is_point(context: Context, interval: Interval) -> bool:
    """Whether the interval is known to be a single number everywhere. Traced bounds must be the same array."""
    if interval.lo is interval.hi:
        return True
    if context.xp is not np or interval.lo.shape != interval.hi.shape:
        return False
    start = (slice(0, 1),) * interval.lo.ndim  # compare one element first, which is usually enough
    return bool((interval.lo[start] == interval.hi[start]).all()) and bool((interval.lo == interval.hi).all())


def same_for_both(interval: Interval, function: Callable[[Any], Any]) -> Interval:
    """Apply `function` to both bounds. A point stays a single array."""
    lo = function(interval.lo)
    return Interval(lo, lo if interval.hi is interval.lo else function(interval.hi))


def everything(context: Context, aval: Any) -> Interval:
    """The interval of a value of which nothing is known."""
    shape = (1,) * (context.rank + len(aval.shape))
    if aval.dtype == np.bool_:
        return Interval(np.zeros(shape, bool), np.ones(shape, bool))
    if is_integer(aval.dtype):
        low, high = limits(aval.dtype)
        return Interval(np.full(shape, low), np.full(shape, high))
    nothing = np.full(shape, np.nan, np.float64 if context.xp is np else np.float32)
    return Interval(nothing, nothing)


def exactly(context: Context, value: Any, dtype: Any) -> Interval:
    """The interval of a constant. All its axes are own axes."""
    value = np.asarray(value).astype(dtype)
    return stored(context, round_outward(context, value.reshape((1,) * context.rank + value.shape)))


def round_outward(context: Context, value: Any) -> Interval:
    """Bounds for an input array, in its own dtype. Subnormals may be flushed to zero, so they become [-tiny, tiny].

    Some operations flush subnormals and others do not, comparisons among them. They are therefore detected by their
    bits, before any minimum is taken.
    """
    if not is_float(value.dtype):
        return Interval(value, value)
    xp, tiny = context.xp, np.asarray(jnp.finfo(value.dtype).tiny, value.dtype)
    if isinstance(value, np.ndarray):
        nonzero = value != 0
    else:
        bits = jax.lax.bitcast_convert_type(value, f"uint{jnp.finfo(value.dtype).bits}")
        nonzero = (bits << np.asarray(1, bits.dtype)) != 0
    small = nonzero & (abs(value) < tiny)
    if xp is np and not small.any():
        return Interval(value, value)
    return Interval(xp.where(small, -tiny, value), xp.where(small, tiny, value))


def stored(context: Context, interval: Interval) -> Interval:
    """Convert bounds to the dtype in which bounds are stored."""
    if not is_float(interval.lo.dtype):
        return interval
    dtype = context.float_of(interval.lo.dtype)
    return same_for_both(interval, lambda bound: bound.astype(dtype))


def widened(context: Context, dtype: Any, lo: Any, hi: Any, steps: int = 1) -> Interval:
    """Bounds of a computed float, widened by `steps` roundings. NaN where infinity (and so NaN) is within reach."""
    xp, info = context.xp, jnp.finfo(dtype)
    relative, tiny, largest = 2 * steps * float(info.eps), float(info.tiny), float(info.max)
    lo, hi = lo - (abs(lo) * relative + tiny), hi + (abs(hi) * relative + tiny)
    finite = (lo > -largest) & (hi < largest)
    return Interval(xp.where(finite, lo, xp.nan), xp.where(finite, hi, xp.nan))


def replaced(context: Context, dtype: Any, unknown: Any, interval: Interval) -> Interval:
    """The interval, replaced by "anything" where `unknown`."""
    low, high = limits(dtype) if is_integer(dtype) else (np.nan, np.nan)
    if unknown is False or (context.xp is np and not np.any(unknown)):
        return interval
    return Interval(context.xp.where(unknown, low, interval.lo), context.xp.where(unknown, high, interval.hi))


def monotone(
    context: Context,
    dtype: Any,
    function: Callable[..., Any],
    candidates: Callable[..., tuple[list[tuple], list[tuple]]],
    *operands: Interval,
    steps: int = 1,
) -> Interval:
    """The interval of `function`, whose extremes are attained among the `candidates` for the low and high bound.

    Integers wrap around on the device if they overflow; where that is possible, nothing is known.
    """
    lo, hi = _extremes(context, function, candidates, operands)
    if is_float(dtype):
        return widened(context, dtype, lo, hi, steps)
    if not is_integer(dtype):
        raise TypeError(dtype)  # callers ask first
    low, high = (int(value) for value in limits(dtype))
    if context.xp is np:
        extents = [Interval(int(np.min(one.lo)), int(np.max(one.hi))) for one in operands]
        least, most = candidates(*extents)
        if min(function(*corner) for corner in least) >= low and max(function(*corner) for corner in most) <= high:
            return Interval(lo, hi)
    # An approximate floating-point result tells whether the exact one may have overflowed.
    storage = context.float_of(jnp.float64 if np.dtype(dtype).itemsize == 8 else jnp.float32)
    rough = _extremes(
        context, function, candidates, [Interval(*(bound.astype(storage) for bound in one)) for one in operands]
    )
    margin = (high - low) * 2.0**-16
    inside = (rough[0] > low + margin) & (rough[1] < high - margin)
    return replaced(context, dtype, ~inside, Interval(lo, hi))


def _extremes(context: Context, function: Any, candidates: Any, operands: Any) -> tuple[Any, Any]:
    least, most = candidates(*operands)
    low_values = [function(*corner) for corner in least]
    high_values = low_values if most is least else [function(*corner) for corner in most]
    return (
        functools.reduce(context.xp.minimum, low_values),
        functools.reduce(context.xp.maximum, high_values),
    )


def every_corner(a: Interval, b: Interval) -> tuple[list[tuple], list[tuple]]:
    """Candidates for a function that is monotone in each argument, in either direction."""
    corners = [(a.lo, b.lo), (a.lo, b.hi), (a.hi, b.lo), (a.hi, b.hi)]
    return corners, corners


def magnitude(context: Context, dtype: Any, a: Interval) -> Interval:
    """|a|"""
    xp = context.xp
    hi = xp.maximum(abs(a.lo), abs(a.hi))
    lo = xp.maximum(xp.maximum(a.lo, -a.hi), 0)
    if not is_integer(dtype):
        return Interval(lo, hi)
    if not jnp.issubdtype(dtype, jnp.signedinteger):
        return a
    return replaced(context, dtype, a.lo == limits(dtype)[0], Interval(lo, hi))


def _nonzero(context: Context, b: Interval) -> tuple[Any, Interval]:
    """Whether b contains 0, and b with harmless bounds there."""
    zero = (b.lo <= 0) & (b.hi >= 0)
    one = np.ones((), b.lo.dtype)[()]
    return zero, Interval(context.xp.where(zero, one, b.lo), context.xp.where(zero, one, b.hi))


def _edge(dtype: Any, a: Interval, b: Interval) -> Any:
    """Where the smallest integer is within reach: its quotient by -1 and its absolute value overflow."""
    if not jnp.issubdtype(dtype, jnp.signedinteger):
        return False
    low = limits(dtype)[0]
    return (a.lo == low) | (b.lo == low)


def _broadcast(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, y: function(*jnp.broadcast_arrays(x, y))


def _truncated_quotient(x: Any, y: Any) -> Any:
    floor = x // y
    return floor + ((floor * y != x) & ((x < 0) != (y < 0)))


def quotient(context: Context, dtype: Any, a: Interval, b: Interval, *, floor: bool) -> Interval:
    """Integer division, rounded down or toward zero."""
    zero, safe = _nonzero(context, b)
    if context.xp is np:
        divide = np.floor_divide if floor else _truncated_quotient
    else:
        divide = jnp.floor_divide if floor else _broadcast(jax.lax.div)
    lo, hi = _extremes(context, divide, every_corner, (a, safe))
    return replaced(context, dtype, zero | _edge(dtype, a, b), Interval(lo.astype(dtype), hi.astype(dtype)))


def remainder(context: Context, dtype: Any, a: Interval, b: Interval, *, floor: bool) -> Interval:
    """The remainder: with the sign of the divisor if rounded down, of the dividend if rounded toward zero."""
    xp = context.xp
    zero, safe = _nonzero(context, b)
    if xp is np:
        divide, rest = (np.floor_divide, np.remainder) if floor else (_truncated_quotient, np.fmod)
    else:
        divide, rest = (
            (jnp.floor_divide, jnp.remainder) if floor else (_broadcast(jax.lax.div), _broadcast(jax.lax.rem))
        )
    # For a single divisor and quotient, x - quotient * divisor increases with x. Otherwise any remainder may occur.
    one_turn = (safe.lo == safe.hi) & (divide(a.lo, safe.lo) == divide(a.hi, safe.lo))
    largest = xp.maximum(abs(safe.lo), abs(safe.hi)) - 1
    nothing = np.zeros((), dtype)[()]
    if floor:
        # If the dividend has the sign of the divisor, the remainder is not larger than it.
        above = xp.where(a.lo >= 0, xp.minimum(a.hi, largest), largest)
        below = xp.where(a.hi <= 0, xp.maximum(a.lo, nothing - largest), nothing - largest)
        wide = Interval(xp.where(safe.lo > 0, nothing, below), xp.where(safe.lo > 0, above, nothing))
    else:
        wide = Interval(
            xp.minimum(xp.maximum(a.lo, nothing - largest), nothing), xp.maximum(xp.minimum(a.hi, largest), nothing)
        )
    lo = xp.where(one_turn, rest(a.lo, safe.lo), wide.lo)
    hi = xp.where(one_turn, rest(a.hi, safe.lo), wide.hi)
    # A dividend that is closer to zero than every divisor, with its sign, is its own remainder.
    smallest = xp.minimum(abs(safe.lo), abs(safe.hi))
    small = (a.lo >= 0) & (a.hi < smallest) & ((safe.lo > 0) if floor else True)
    lo, hi = xp.where(small, a.lo, lo), xp.where(small, a.hi, hi)
    return replaced(context, dtype, zero | _edge(dtype, a, b), Interval(lo.astype(dtype), hi.astype(dtype)))


def float_quotient(context: Context, dtype: Any, a: Interval, b: Interval) -> Interval:
    """a / b; nothing is known where b contains 0."""
    zero, safe = _nonzero(context, b)
    lo, hi = _extremes(context, lambda x, y: x / y, every_corner, (a, safe))
    return replaced(context, dtype, zero, widened(context, dtype, lo, hi, 2))


def convert(context: Context, source: Any, target: Any, a: Interval) -> Interval:
    """The value converted to another dtype."""
    xp = context.xp
    if source == target:
        return a
    if target == np.bool_:
        return Interval((a.lo > 0) | (a.hi < 0), ~((a.lo == 0) & (a.hi == 0)))
    if is_float(target):
        if is_float(source) and jnp.finfo(target).bits >= jnp.finfo(source).bits and jnp.finfo(target).bits >= 32:
            storage = context.float_of(target)
            return Interval(a.lo.astype(storage), a.hi.astype(storage))
        # Rounding is monotone. Devices may skip rounding to a narrower float.
        steps = 0 if jnp.finfo(target).bits >= 32 and not is_float(source) else 1
        lo, hi = (bound.astype(target).astype(context.float_of(target)) for bound in a)
        return Interval(lo, hi) if steps == 0 else widened(context, target, lo, hi)
    if not is_integer(target):
        raise TypeError(target)  # callers ask first
    if source == np.bool_:
        return same_for_both(a, lambda bound: bound.astype(target))
    low, high = limits(target)
    if is_integer(source):
        source_low, source_high = limits(source)
        fits = True
        if int(source_low) < int(low):
            fits = fits & (a.lo >= low.astype(source))
        if int(source_high) > int(high):
            fits = fits & (a.hi <= high.astype(source))
        found = same_for_both(a, lambda bound: bound.astype(target))
        return replaced(context, target, False if fits is True else ~fits, found)
    margin = float(int(high) - int(low)) * 2.0**-16  # near the limits, and for NaN, devices differ
    fits = (a.lo > float(low) + margin - 1) & (a.hi < float(high) - margin)
    if int(low) == 0:
        fits = (a.lo >= 0) & (a.hi < float(high) - margin)
    lo, hi = (xp.trunc(xp.where(fits, bound, 0)).astype(target) for bound in a)
    return replaced(context, target, ~fits, Interval(lo, hi))

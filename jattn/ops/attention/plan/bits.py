"""Rules of bitwise primitives: the leading bits that both ends of an interval share are known for all its numbers.

For example, on aligned tiles of 128 positions `q ^ k` is known except for its last 7 bits.
"""

from typing import Any

import jax
import numpy as np

from . import bounds
from .bounds import Context, Interval
from .primitives import Rule, compare_equal, registrar

RULES: dict[str, Rule] = {}
"""See `primitives.RULES`."""


_rule = registrar(RULES)


def _width(dtype: Any) -> int:
    return np.dtype(dtype).itemsize * 8


def _number(value: int, dtype: Any) -> Any:
    return np.asarray(value, dtype)[()]


def _logical_shift(value: Any, by: int) -> Any:
    """Shift right, filling with zeros."""
    unsigned = np.dtype(f"uint{_width(value.dtype)}")
    return (value.astype(unsigned) >> _number(by, unsigned)).astype(value.dtype)


def _filled(value: Any) -> Any:
    """Set all bits below the highest set one."""
    shift = 1
    while shift < _width(value.dtype):
        value = value | _logical_shift(value, shift)
        shift *= 2
    return value


def _known_bits(a: Interval) -> tuple[Any, Any]:
    """The bits that are set in every number of an interval, and the bits that are set in some number."""
    open_ = _filled(a.lo ^ a.hi)
    return a.lo & ~open_, a.lo | open_


def _from_bits(certain: Any, possible: Any) -> Interval:
    """The smallest and the largest number that has all the certain bits and no bits but the possible ones."""
    dtype = np.dtype(certain.dtype)
    sign = _number(np.iinfo(dtype).min, dtype)  # 0 for unsigned numbers
    sign = possible & ~certain & sign
    return Interval(certain | sign, possible & ~sign)


def _narrowed(context: Context, interval: Interval, lo: Any, hi: Any, where: Any) -> Interval:
    """Intersect with other bounds, `where` they hold."""
    xp = context.xp
    return Interval(
        xp.where(where, xp.maximum(interval.lo, lo), interval.lo),
        xp.where(where, xp.minimum(interval.hi, hi), interval.hi),
    )


@_rule("and")
def _and(context, equation, a, b):
    if equation.outvars[0].aval.dtype == np.bool_:
        return Interval(a.lo & b.lo, a.hi & b.hi)
    (a_certain, a_possible), (b_certain, b_possible) = _known_bits(a), _known_bits(b)
    found = _from_bits(a_certain & b_certain, a_possible & b_possible)
    for one in (a, b):  # a nonnegative operand bounds the result by itself
        found = _narrowed(context, found, _number(0, one.lo.dtype), one.hi, one.lo >= 0)
    return found


@_rule("or")
def _or(context, equation, a, b):
    if equation.outvars[0].aval.dtype == np.bool_:
        return Interval(a.lo | b.lo, a.hi | b.hi)
    (a_certain, a_possible), (b_certain, b_possible) = _known_bits(a), _known_bits(b)
    found = _from_bits(a_certain | b_certain, a_possible | b_possible)
    natural = (a.lo >= 0) & (b.lo >= 0)
    return _narrowed(context, found, context.xp.maximum(a.lo, b.lo), found.hi, natural)


@_rule("xor")
def _xor(context, equation, a, b):
    if equation.outvars[0].aval.dtype == np.bool_:
        same = compare_equal(context, equation, a, b)
        return Interval(~same.hi, ~same.lo)
    (a_certain, a_possible), (b_certain, b_possible) = _known_bits(a), _known_bits(b)
    certain = (a_certain & ~b_possible) | (b_certain & ~a_possible)
    possible = (a_possible | b_possible) & ~(a_certain & b_certain)
    return _from_bits(certain, possible)


@_rule("not")
def _not(context, equation, a):
    del context, equation
    return Interval(~a.hi, ~a.lo)


def _at_points(a: Interval, b: Interval) -> Any:
    return True if a.lo is a.hi and b.lo is b.hi else (a.lo == a.hi) & (b.lo == b.hi)


def _shifted(context: Context, dtype: Any, a: Interval, b: Interval, result: Interval, value: Any) -> Interval:
    """`value` where both operands are single numbers, otherwise `result`.

    Nothing is known where the shift is negative or at least the number of bits: devices differ.
    """
    xp, bits = context.xp, _width(dtype)
    outside = (b.lo < 0) | (b.hi > bits - 1)
    points = _at_points(a, b)
    if points is True and xp is np and not outside.any():
        return Interval(value, value)
    found = Interval(xp.where(points, value, result.lo), xp.where(points, value, result.hi))
    return bounds.replaced(context, dtype, outside, found)


@_rule("shift_left")
def _shift_left(context, equation, a, b):
    dtype, xp = equation.outvars[0].aval.dtype, context.xp
    bits = _width(dtype)
    value = a.lo << xp.clip(b.lo, 0, bits - 1)
    one = _number(1, dtype)
    factor = Interval(*(one << xp.clip(bound, 0, bits - 2) for bound in b))
    product = bounds.monotone(context, dtype, lambda x, y: x * y, bounds.every_corner, a, factor)
    product = bounds.replaced(context, dtype, b.hi > bits - 2, product)
    # If the shift is a single number, the known bits shift with it.
    certain, possible = (bound << xp.clip(b.lo, 0, bits - 1) for bound in _known_bits(a))
    moved = _from_bits(certain, possible)
    product = _narrowed(context, product, moved.lo, moved.hi, b.lo == b.hi)
    return _shifted(context, dtype, a, b, product, value)


@_rule("shift_right_arithmetic")
def _shift_right(context, equation, a, b):
    """The highest bit is repeated, also for unsigned numbers."""
    dtype, xp = equation.outvars[0].aval.dtype, context.xp
    signed = np.dtype(f"int{_width(dtype)}")
    low, high = (bound.astype(signed) for bound in a)
    by = [xp.clip(bound, 0, _width(dtype) - 1).astype(signed) for bound in b]
    corners = [(end >> count).astype(dtype) for end in (low, high) for count in by]
    lo = xp.minimum(xp.minimum(corners[0], corners[1]), xp.minimum(corners[2], corners[3]))
    hi = xp.maximum(xp.maximum(corners[0], corners[1]), xp.maximum(corners[2], corners[3]))
    # Unsigned numbers that differ in the highest bit are ordered differently as signed numbers.
    mixed = (low < 0) != (high < 0) if dtype != signed else False
    return _shifted(context, dtype, a, b, bounds.replaced(context, dtype, mixed, Interval(lo, hi)), corners[0])


@_rule("shift_right_logical")
def _shift_right_logical(context, equation, a, b):
    dtype, xp = equation.outvars[0].aval.dtype, context.xp
    unsigned = np.dtype(f"uint{_width(dtype)}")
    by = Interval(*(xp.clip(bound, 0, _width(dtype) - 1).astype(unsigned) for bound in b))
    one_sign = (a.lo >= 0) | (a.hi < 0)
    low, high = (bound.astype(unsigned) for bound in a)
    # As unsigned numbers, negative ones are the largest. An interval across zero may contain any number.
    low = xp.where(one_sign, low, _number(0, unsigned))
    high = xp.where(one_sign, high, _number(np.iinfo(unsigned).max, unsigned))
    lo, hi = (low >> by.hi).astype(dtype), (high >> by.lo).astype(dtype)
    value = (a.lo.astype(unsigned) >> by.lo).astype(dtype)
    return _shifted(context, dtype, a, b, bounds.replaced(context, dtype, lo > hi, Interval(lo, hi)), value)


@_rule("clz")
def _leading_zeros(context, equation, a):
    """A larger nonnegative number has fewer leading zeros; a negative number has none."""
    dtype, xp = equation.outvars[0].aval.dtype, context.xp
    bits = _number(_width(dtype), dtype)
    most, least = bits - _set_bits(context, _filled(a.lo)), bits - _set_bits(context, _filled(a.hi))
    crosses = (a.lo < 0) & (a.hi >= 0)
    return Interval(xp.where(crosses, _number(0, dtype), least), xp.where(crosses, bits, most))


@_rule("population_count")
def _population_count(context, equation, a):
    del equation
    return Interval(*(_set_bits(context, bound) for bound in _known_bits(a)))


def _set_bits(context: Context, value: Any) -> Any:
    """The number of set bits."""
    if context.xp is not np:
        return jax.lax.population_count(value)
    return np.bitwise_count(value.view(f"uint{_width(value.dtype)}")).astype(value.dtype)

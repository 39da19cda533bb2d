"""Rules of functions of one float: rounding, and monotone functions, evaluated at the ends of the interval.

Devices compute these functions with errors of their own, so bounds are widened by many roundings. A number that may be
outside of the function's domain, or may reach infinity, is unknown.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from . import bounds
from .bounds import Context, Interval
from .primitives import Rule, registrar

RULES: dict[str, Rule] = {}
"""See `primitives.RULES`."""

STEPS, NARROW = 64, 4
"""By how many roundings a device's function may be off, for float32 and for narrower floats (which are computed in
about float32). Published errors are a few roundings."""


_rule = registrar(RULES)


def _widened(context: Context, dtype: Any, lo: Any, hi: Any, times: int = 1, *, near_zero: bool = True) -> Interval:
    """Widen by `times` the usual relative error. With `near_zero`, also by that error relative to 1: near a zero of the
    function, its error does not shrink with its value."""
    info = jax.numpy.finfo(dtype)
    steps = times * (STEPS if info.bits >= 32 else NARROW)
    margin = 2 * steps * float(info.eps) if near_zero else 0.0
    return bounds.widened(context, dtype, lo - margin, hi + margin, steps)


@_rule("floor", "ceil")
def _to_integer(context, equation, a):
    return bounds.same_for_both(a, getattr(context.xp, equation.primitive.name))


@_rule("round")
def _round(context, equation, a):
    xp = context.xp
    if int(equation.params["rounding_method"]) == int(jax.lax.RoundingMethod.TO_NEAREST_EVEN):
        return bounds.same_for_both(a, xp.round)

    def away_from_zero(x):
        whole = xp.trunc(x)
        return xp.where(abs(x - whole) >= 0.5, whole + xp.sign(x), whole)

    return bounds.same_for_both(a, away_from_zero)


def _rising(
    name: str, function: Callable[[Any, Any], Any], low: float = -np.inf, high: float = np.inf, times: int = 1
) -> None:
    """Register a function that is monotone between `low` and `high` and unknown outside. `times`: see `_widened`."""

    def rule(context, equation, a):
        dtype = equation.outvars[0].aval.dtype
        if not bounds.is_float(dtype):
            return None
        xp = context.xp
        inside = (a.lo > low) & (a.hi < high)
        safe = (xp.where(inside, bound, 1.0).astype(bound.dtype) for bound in a)
        lo, hi = (function(xp, bound) for bound in safe)
        lo, hi = xp.minimum(lo, hi), xp.maximum(lo, hi)
        return bounds.replaced(context, dtype, ~inside, _widened(context, dtype, lo, hi, times))

    RULES[name] = rule


_rising("exp", lambda xp, x: xp.exp(x))
_rising("exp2", lambda xp, x: xp.exp2(x), times=8)  # a device may round x log(2) first
_rising("expm1", lambda xp, x: xp.expm1(x))
_rising("log", lambda xp, x: xp.log(x), low=0)
_rising("log2", lambda xp, x: xp.log2(x), low=0)
_rising("log1p", lambda xp, x: xp.log1p(x), low=-1)
_rising("tanh", lambda xp, x: xp.tanh(x))
_rising("logistic", lambda xp, x: 0.5 + 0.5 * xp.tanh(x / 2))
_rising("cbrt", lambda xp, x: xp.cbrt(x))
_rising("sinh", lambda xp, x: xp.sinh(x))
_rising("asinh", lambda xp, x: xp.arcsinh(x))
_rising("atan", lambda xp, x: xp.arctan(x))
_rising("rsqrt", lambda xp, x: 1 / xp.sqrt(x), low=0)  # decreasing works as well


@_rule("sqrt")
def _sqrt(context, equation, a):
    dtype, xp = equation.outvars[0].aval.dtype, context.xp
    if not bounds.is_float(dtype):
        return None
    inside = a.lo >= 0
    lo, hi = (xp.sqrt(xp.where(inside, bound, 0)) for bound in a)
    return bounds.replaced(context, dtype, ~inside, bounds.widened(context, dtype, lo, hi, 4))


@_rule("sin", "cos")
def _wave(context, equation, a):
    """The range between the ends, extended to 1 or -1 if the interval contains a maximum or a minimum."""
    dtype, xp = equation.outvars[0].aval.dtype, context.xp
    if not bounds.is_float(dtype):
        return None
    function = getattr(xp, equation.primitive.name)
    near = (abs(a.lo) < 1e4) & (abs(a.hi) < 1e4)  # beyond that, float32 cannot resolve the period
    a = Interval(*(xp.where(near, bound, 0) for bound in a))
    ends = [function(bound) for bound in a]
    crest = np.pi / 2 if equation.primitive.name == "sin" else 0.0

    def between(place):  # with a margin for rounding of the ends
        margin = 1e-2
        return xp.floor((a.hi + margin - place) / (2 * np.pi)) > xp.floor((a.lo - margin - place) / (2 * np.pi))

    hi = xp.where(between(crest), 1.0, xp.maximum(*ends))
    lo = xp.where(between(crest + np.pi), -1.0, xp.minimum(*ends))
    lo, hi = xp.where(near, lo, -1.0), xp.where(near, hi, 1.0)
    found = _widened(context, dtype, lo, hi, 8)
    return bounds.replaced(context, dtype, ~near, found)


@_rule("pow")
def _pow(context, equation, a, b):
    """Powers of a positive base."""
    dtype, xp = equation.outvars[0].aval.dtype, context.xp
    if not bounds.is_float(dtype) or not bounds.is_float(equation.invars[1].aval.dtype):
        return None
    inside = (a.lo > 0) & (a.hi < np.inf) & (abs(b.lo) < 1e6) & (abs(b.hi) < 1e6)
    base, exponent = (Interval(*(xp.where(inside, bound, 1.0) for bound in one)) for one in (a, b))
    values = [xp.power(x, y) for x, y in bounds.every_corner(base, exponent)[0]]
    lo = xp.minimum(xp.minimum(values[0], values[1]), xp.minimum(values[2], values[3]))
    hi = xp.maximum(xp.maximum(values[0], values[1]), xp.maximum(values[2], values[3]))
    # The relative error grows with the logarithm of the result, which is below 128 for float32.
    return bounds.replaced(context, dtype, ~inside, _widened(context, dtype, lo, hi, 16, near_zero=False))


@_rule("is_finite")
def _is_finite(context, equation, a):
    del context, equation
    finite = np.isfinite if isinstance(a.lo, np.ndarray) else jax.numpy.isfinite
    return Interval(finite(a.lo) & finite(a.hi), finite(a.lo) | finite(a.hi) | (a.lo != a.hi))

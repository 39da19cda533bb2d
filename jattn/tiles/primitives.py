"""The rule of each JAX primitive on intervals. What has no rule here is "some": never a wrong skip."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from . import bounds
from .bounds import Context, Interval

Rule = Callable[..., Interval | None]
RULES: dict[str, Rule] = {}
"""`RULES[primitive](context, equation, *operands)`; a rule that knows nothing returns None."""


Some = TypeVar("Some", bound=Rule)


def _rule(*names: str) -> Callable[[Some], Some]:
    def register(function: Some) -> Some:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def _dtype(equation: Any) -> np.dtype:
    return equation.outvars[0].aval.dtype


def is_number(equation: Any) -> bool:
    """Whether an equation has an integer or a float for its result."""
    dtype = _dtype(equation)
    return bounds.is_integer(dtype) or bounds.is_float(dtype)


# --- comparisons. Each is written so that a NaN bound gives (False, True). ---


@_rule("eq")
def _eq(context, equation, a, b):
    del context, equation
    return Interval((a.lo == a.hi) & (b.lo == b.hi) & (a.lo == b.lo), ~((a.lo > b.hi) | (b.lo > a.hi)))


@_rule("ne")
def _ne(context, equation, a, b):
    same = _eq(context, equation, a, b)
    return Interval(~same.hi, ~same.lo)


@_rule("lt")
def _lt(context, equation, a, b):
    del context, equation
    return Interval(a.hi < b.lo, ~(a.lo >= b.hi))


@_rule("le")
def _le(context, equation, a, b):
    del context, equation
    return Interval(a.hi <= b.lo, ~(a.lo > b.hi))


@_rule("gt")
def _gt(context, equation, a, b):
    return _lt(context, equation, b, a)


@_rule("ge")
def _ge(context, equation, a, b):
    return _le(context, equation, b, a)


# --- logic, on booleans and on the bits of integers ---


def _bits(context: Context, equation: Any, function: Callable, a: Interval, b: Interval, *, never_above: bool) -> Any:
    """Exact for single numbers; else the bits of numbers that are not negative stay below the next power of two."""
    dtype, xp = _dtype(equation), context.xp
    largest = xp.minimum(a.hi, b.hi) if never_above else _filled(xp.maximum(a.hi, b.hi))
    natural = (a.lo >= 0) & (b.lo >= 0)
    zero = np.zeros((), dtype)[()]
    known = bounds.replaced(context, dtype, ~natural, Interval(xp.zeros_like(largest), largest))
    if never_above:  # one operand that is not negative bounds the result alone
        for one, other in ((a, b), (b, a)):
            alone = (one.lo >= 0) & (other.lo < 0)
            known = Interval(xp.where(alone, zero, known.lo), xp.where(alone, one.hi, known.hi))
    point = (a.lo == a.hi) & (b.lo == b.hi)
    value = function(a.lo, b.lo)
    return Interval(xp.where(point, value, known.lo), xp.where(point, value, known.hi))


def _filled(value: Any) -> Any:
    """All bits set from the highest set one down (of numbers that are not negative)."""
    shift = 1
    while shift < np.dtype(value.dtype).itemsize * 8:
        value = value | (value >> np.asarray(shift, value.dtype)[()])
        shift *= 2
    return value


@_rule("and")
def _and(context, equation, a, b):
    if _dtype(equation) == np.bool_:
        return Interval(a.lo & b.lo, a.hi & b.hi)
    return _bits(context, equation, lambda x, y: x & y, a, b, never_above=True)


@_rule("or")
def _or(context, equation, a, b):
    if _dtype(equation) == np.bool_:
        return Interval(a.lo | b.lo, a.hi | b.hi)
    return _bits(context, equation, lambda x, y: x | y, a, b, never_above=False)


@_rule("xor")
def _xor(context, equation, a, b):
    if _dtype(equation) == np.bool_:
        return _ne(context, equation, a, b)
    return _bits(context, equation, lambda x, y: x ^ y, a, b, never_above=False)


@_rule("not")
def _not(context, equation, a):
    del context, equation
    return Interval(~a.hi, ~a.lo)


@_rule("select_n")
def _select(context, equation, which, *cases):
    xp = context.xp
    lo, hi = cases[0]
    if which.lo.dtype != np.bool_:  # by an integer: any of the cases
        for case in cases[1:]:
            lo, hi = xp.minimum(lo, case.lo), xp.maximum(hi, case.hi)
        return Interval(lo, hi)
    if len(cases) == 1:
        return cases[0]
    no, yes = cases
    if _dtype(equation) == np.bool_:
        return Interval(
            (which.lo | no.lo) & (~which.hi | yes.lo) & (no.lo | yes.lo), (which.hi & yes.hi) | (~which.lo & no.hi)
        )
    lo = xp.where(which.lo, yes.lo, xp.where(which.hi, xp.minimum(yes.lo, no.lo), no.lo))
    hi = xp.where(which.lo, yes.hi, xp.where(which.hi, xp.maximum(yes.hi, no.hi), no.hi))
    return Interval(lo, hi)


# --- arithmetic ---


def _arithmetic(function: Callable, candidates: Callable) -> Rule:
    def rule(context, equation, *operands):
        if not is_number(equation):
            return None
        return bounds.monotone(context, _dtype(equation), function, candidates, *operands)

    return rule


RULES["add"] = RULES["add_any"] = _arithmetic(lambda x, y: x + y, lambda a, b: ([(a.lo, b.lo)], [(a.hi, b.hi)]))
RULES["sub"] = _arithmetic(lambda x, y: x - y, lambda a, b: ([(a.lo, b.hi)], [(a.hi, b.lo)]))
RULES["neg"] = _arithmetic(lambda x: -x, lambda a: ([(a.hi,)], [(a.lo,)]))
_mul = _arithmetic(lambda x, y: x * y, bounds.every_corner)


@_rule("mul")
def _product(context, equation, a, b):
    if is_number(equation) and equation.invars[0] is equation.invars[1]:
        return _power(context, equation, a, 2)
    return _mul(context, equation, a, b)


def _power(context: Context, equation: Any, a: Interval, exponent: int) -> Interval | None:
    dtype = _dtype(equation)
    if not is_number(equation) or exponent < 0:
        return None
    if exponent == 0:
        return bounds.exactly(context, 1, dtype)
    base = bounds.magnitude(context, dtype, a) if exponent % 2 == 0 else a
    result = bounds.monotone(
        context,
        dtype,
        lambda x: x**exponent,
        lambda a: ([(a.lo,)], [(a.hi,)]),
        base,
        steps=exponent,
    )
    if exponent % 2 == 0 and bounds.is_integer(dtype):  # the smallest integer has no magnitude
        return bounds.replaced(context, dtype, base.lo < 0, result)
    return result


@_rule("integer_pow")
def _integer_pow(context, equation, a):
    return _power(context, equation, a, equation.params["y"])


@_rule("square")
def _square(context, equation, a):
    return _power(context, equation, a, 2)


@_rule("abs")
def _abs(context, equation, a):
    return bounds.magnitude(context, _dtype(equation), a) if is_number(equation) else None


@_rule("sign")
def _sign(context, equation, a):
    if not is_number(equation):
        return None
    return Interval(context.xp.sign(a.lo), context.xp.sign(a.hi))


@_rule("max")
def _max(context, equation, a, b):
    del equation
    return Interval(context.xp.maximum(a.lo, b.lo), context.xp.maximum(a.hi, b.hi))


@_rule("min")
def _min(context, equation, a, b):
    del equation
    return Interval(context.xp.minimum(a.lo, b.lo), context.xp.minimum(a.hi, b.hi))


@_rule("clamp")
def _clamp(context, equation, low, a, high):
    return _min(context, equation, _max(context, equation, a, low), high)


@_rule("div")
def _div(context, equation, a, b):
    if not is_number(equation):
        return None
    if bounds.is_float(_dtype(equation)):
        return bounds.float_quotient(context, _dtype(equation), a, b)
    return bounds.quotient(context, _dtype(equation), a, b, floor=False)


@_rule("rem")
def _rem(context, equation, a, b):
    if not bounds.is_integer(_dtype(equation)):
        return None
    return bounds.remainder(context, _dtype(equation), a, b, floor=False)


@_rule("shift_left")
def _shift_left(context, equation, a, b):
    dtype = _dtype(equation)
    bits = np.dtype(dtype).itemsize * 8
    outside = (b.lo < 0) | (b.hi > bits - 2)
    one = np.ones((), dtype)[()]
    factor = Interval(*(one << context.xp.clip(bound, 0, bits - 2) for bound in b))
    product = bounds.monotone(context, dtype, lambda x, y: x * y, bounds.every_corner, a, factor)
    return bounds.replaced(context, dtype, outside, product)


@_rule("shift_right_arithmetic", "shift_right_logical")
def _shift_right(context, equation, a, b):
    dtype, xp = _dtype(equation), context.xp
    bits = np.dtype(dtype).itemsize * 8
    outside = (b.lo < 0) | (b.hi > bits - 1)
    if equation.primitive.name == "shift_right_logical":
        outside = outside | (a.lo < 0)
    by = Interval(*(xp.clip(bound, 0, bits - 1) for bound in b))
    corners = [a.lo >> by.lo, a.lo >> by.hi, a.hi >> by.lo, a.hi >> by.hi]
    lo = xp.minimum(xp.minimum(corners[0], corners[1]), xp.minimum(corners[2], corners[3]))
    hi = xp.maximum(xp.maximum(corners[0], corners[1]), xp.maximum(corners[2], corners[3]))
    return bounds.replaced(context, dtype, outside, Interval(lo, hi))


@_rule("floor", "ceil")
def _round_to_integer(context, equation, a):
    function = getattr(context.xp, equation.primitive.name)
    return Interval(function(a.lo), function(a.hi))


@_rule("sqrt")
def _sqrt(context, equation, a):
    if not is_number(equation):
        return None
    xp = context.xp
    inside = a.lo >= 0
    lo, hi = (xp.sqrt(xp.where(inside, bound, 0)) for bound in a)
    return bounds.replaced(context, _dtype(equation), ~inside, bounds.widened(context, _dtype(equation), lo, hi, 4))


@_rule("convert_element_type")
def _convert(context, equation, a):
    source, target = equation.invars[0].aval.dtype, _dtype(equation)
    if target != np.bool_ and not is_number(equation):
        return None
    if source != np.bool_ and not bounds.is_integer(source) and not bounds.is_float(source):
        return None
    return bounds.convert(context, source, target, a)


@_rule("copy", "copy_p", "stop_gradient", "optimization_barrier", "pvary", "pcast")
def _same(context, equation, a):
    del context
    return a if len(equation.invars) == 1 else None


# --- what jnp makes of `//` and `%` ---


def known_call(equation: Any, inner: Any) -> Rule | None:
    """The rule of a nested call that is `jnp.floor_divide` or `jnp.remainder` of integers, by its body, not its name.

    Taken apart, their correction of the sign would widen the interval, though the whole is plain.
    """
    functions = {"floor_divide": (jnp.floor_divide, bounds.quotient), "remainder": (jnp.remainder, bounds.remainder)}
    name = equation.params.get("name")
    if name not in functions or len(equation.invars) != 2 or not bounds.is_integer(_dtype(equation)):
        return None
    function, interval_of = functions[name]
    shapes = [
        jax.ShapeDtypeStruct(one.aval.shape, one.aval.dtype, weak_type=one.aval.weak_type) for one in inner.jaxpr.invars
    ]
    expected = jax.make_jaxpr(function)(*shapes).jaxpr.eqns
    if len(expected) != 1 or "jaxpr" not in expected[0].params or str(expected[0].params["jaxpr"]) != str(inner):
        return None
    dtype = _dtype(equation)

    def rule(context, equation, a, b):
        operands = [
            bounds.convert(context, variable.aval.dtype, dtype, one)
            for variable, one in zip(equation.invars, (a, b), strict=True)
        ]
        return interval_of(context, dtype, *operands, floor=True)

    return rule

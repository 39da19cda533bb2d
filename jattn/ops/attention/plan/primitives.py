"""The interval rules of JAX primitives. A primitive without a rule gives "some": slower, never a wrong skip."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from . import bounds
from .bounds import Context, Interval

Rule = Callable[..., Interval | None]
RULES: dict[str, Rule] = {}
"""`RULES[primitive](context, equation, *operands)`. A rule returns None if it knows nothing about the result."""


Some = TypeVar("Some", bound=Rule)


def registrar(rules: dict[str, Any]) -> Callable[..., Callable[[Some], Some]]:
    """A decorator that registers a rule in `rules` under the names of its primitives."""

    def of(*names: str) -> Callable[[Some], Some]:
        def register(function: Some) -> Some:
            rules.update(dict.fromkeys(names, function))
            return function

        return register

    return of


_rule = registrar(RULES)


def _dtype(equation: Any) -> np.dtype:
    return equation.outvars[0].aval.dtype


def is_number(equation: Any) -> bool:
    """Whether the result of an equation is an integer or a float."""
    dtype = _dtype(equation)
    return bounds.is_integer(dtype) or bounds.is_float(dtype)


# --- comparisons; written so that a NaN bound gives (False, True) ---


@_rule("eq")
def compare_equal(context, equation, a, b):
    del context, equation
    return Interval((a.lo == a.hi) & (b.lo == b.hi) & (a.lo == b.lo), ~((a.lo > b.hi) | (b.lo > a.hi)))


@_rule("ne")
def _ne(context, equation, a, b):
    same = compare_equal(context, equation, a, b)
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


@_rule("le_to", "lt_to")
def _total_order(context, equation, a, b):
    """The total order, in which -0 comes before 0."""
    rule = _le if equation.primitive.name == "le_to" else _lt
    if not bounds.is_float(equation.invars[0].aval.dtype):
        return rule(context, equation, a, b)
    zeros = (a.lo <= 0) & (a.hi >= 0) & (b.lo <= 0) & (b.hi >= 0)
    found = rule(context, equation, a, b)
    return Interval(found.lo & ~zeros, found.hi | zeros)


# --- choices ---


def choose(context: Context, which: Interval, cases: Sequence[Interval]) -> Interval:
    """One of the cases, by its (clamped) number."""
    xp = context.xp
    lo, hi = cases[0]
    points = bounds.is_point(context, which) and all(one.lo is one.hi for one in cases)
    logical = lo.dtype == np.bool_
    last = len(cases) - 1
    first, final = (xp.clip(bound, 0, last) for bound in which)
    for number, case in enumerate(cases[1:], start=1):
        # Earlier cases are possible if `first` is below this number, and this case if `final` reaches it.
        if points:
            lo = xp.where(first >= number, case.lo, lo)
            continue
        before, here = first < number, final >= number
        lower, higher = (lo & case.lo, hi | case.hi) if logical else (xp.minimum(lo, case.lo), xp.maximum(hi, case.hi))
        lo = xp.where(before & here, lower, xp.where(here, case.lo, lo))
        hi = xp.where(before & here, higher, xp.where(here, case.hi, hi))
    return Interval(lo, lo if points else hi)


@_rule("select_n")
def _select(context, equation, which, *cases):
    if len(cases) == 1:
        return cases[0]
    if which.lo.dtype != np.bool_:
        return choose(context, which, cases)
    xp = context.xp
    no, yes = cases
    if bounds.is_point(context, which) and all(one.lo is one.hi for one in cases):
        value = xp.where(which.lo, yes.lo, no.lo)
        return Interval(value, value)
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
    if exponent % 2 == 0 and bounds.is_integer(dtype):  # the absolute value of the smallest integer overflows
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

"""Rules of whole functions that are simple although their parts are not, recognized by their body, not their name."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ....masks import selected
from . import bounds, lists
from .bounds import Context, Interval
from .primitives import Rule

_INTEGERS = {
    "floor_divide": (jnp.floor_divide, bounds.quotient),
    "remainder": (jnp.remainder, bounds.remainder),
}
_SEARCHES = {
    str((side, method)): functools.partial(jnp.searchsorted, side=side, method=method)
    for side in ("left", "right")
    for method in ("scan", "scan_unrolled", "compare_all")
}


def known_call(equation: Any, inner: Any) -> Rule | None:
    """The rule of a nested call: integer `floor_divide` or `remainder`, `searchsorted`, or that of `masks.Selected`.

    Evaluated equation by equation, their sign corrections or bisection steps would widen the interval.
    """
    name = equation.params.get("name")
    if name == "row_holds" and [one.aval.ndim for one in inner.jaxpr.invars] == [2, 0, 0]:
        return lists.row_holds if _body(selected.row_holds, _avals(inner)) == str(inner) else None
    if len(equation.invars) != 2 or (name not in _INTEGERS and name != "searchsorted"):
        return None
    avals = _avals(inner)
    if name != "searchsorted":
        dtype = equation.outvars[0].aval.dtype
        if not bounds.is_integer(dtype) or _body(_INTEGERS[name][0], avals) != str(inner):
            return None
        return functools.partial(_of_integers, _INTEGERS[name][1], dtype)
    integers = all(bounds.is_integer(dtype) for _, dtype, _ in avals)
    if len(avals[0][0]) != 1 or (avals[0][1] != avals[1][1] and not integers):
        return None
    search = next((one for one in _SEARCHES.values() if _body(one, avals) == str(inner)), None)
    return search and functools.partial(_search, search)


def _avals(inner: Any) -> tuple[Any, ...]:
    return tuple((one.aval.shape, one.aval.dtype, one.aval.weak_type) for one in inner.jaxpr.invars)


@functools.lru_cache(maxsize=256)
def _body(function: Any, avals: tuple[Any, ...]) -> str | None:
    """The jaxpr of a function that consists of one nested call, as text."""
    shapes = [jax.ShapeDtypeStruct(shape, dtype, weak_type=weak) for shape, dtype, weak in avals]
    equations = jax.make_jaxpr(function)(*shapes).jaxpr.eqns
    return str(equations[0].params["jaxpr"]) if len(equations) == 1 and "jaxpr" in equations[0].params else None


def _of_integers(interval_of: Any, dtype: Any, context: Context, equation: Any, a: Interval, b: Interval) -> Interval:
    operands = [
        bounds.convert(context, variable.aval.dtype, dtype, one)
        for variable, one in zip(equation.invars, (a, b), strict=True)
    ]
    return interval_of(context, dtype, *operands, floor=True)


def _search(search: Any, context: Context, equation: Any, table: Interval, query: Interval) -> Interval | None:
    """`searchsorted`: the place increases with the number searched for. The table must be a known or traced point."""
    common = jnp.promote_types(*(variable.aval.dtype for variable in equation.invars))
    if bounds.is_integer(common):
        table, query = (
            bounds.convert(context, variable.aval.dtype, common, one)
            for variable, one in zip(equation.invars, (table, query), strict=True)
        )
    if not bounds.is_point(context, table) or set(table.lo.shape[: context.rank]) != {1}:
        return None
    dtype, size = equation.outvars[0].aval.dtype, equation.invars[0].aval.shape[0]
    entries, xp = table.lo.reshape(table.lo.shape[context.rank :]), context.xp
    if entries.shape != (size,):
        return None
    if xp is not np:
        return bounds.same_for_both(query, lambda bound: search(entries.astype(bound.dtype), bound).astype(dtype))
    if not np.all(entries[1:] >= entries[:-1]):
        return None

    def place(bound, side):
        return np.searchsorted(entries, bound, side).astype(dtype)

    side = search.keywords["side"]
    found = bounds.same_for_both(query, lambda bound: place(bound, side))
    if not bounds.is_float(equation.invars[1].aval.dtype):
        return found
    # The rule does not rely on the order of -0 and 0. NaN may be anywhere.
    zero = (query.lo <= 0) & (query.hi >= 0)
    found = Interval(
        np.where(zero, place(query.lo, "left"), found.lo), np.where(zero, place(query.hi, "right"), found.hi)
    )
    known = (query.lo == query.lo) & (query.hi == query.hi)
    nothing = np.zeros((), dtype)[()]
    return Interval(np.where(known, found.lo, nothing), np.where(known, found.hi, nothing + size))

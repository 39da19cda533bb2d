"""Rules of `cond`, `switch`, `scan` and `while_loop`: their bodies are evaluated with intervals."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ....foundation.shard_map import carries_alone
from .bounds import Context, Interval
from .points import together
from .primitives import choose

TURNS = 64
"""The most iterations of a loop that are followed. A loop that may take more is unknown."""

Evaluate = Callable[[Context, Any, Any, list[Interval]], list[Interval]]
"""`evaluate(context, jaxpr, constants, inputs)`."""


def cond(context: Context, equation: Any, operands: list[Interval], evaluate: Evaluate) -> list[Interval] | None:
    """The union of the results of all branches that may be taken."""
    which, *arguments = operands
    results = [evaluate(context, one.jaxpr, one.consts, arguments) for one in equation.params["branches"]]
    return _chosen(context, which, results)


def _chosen(context: Context, which: Interval, results: list[list[Interval]]) -> list[Interval] | None:
    """Of the results of several bodies, those with the number `which`."""
    found = [_one_of(context, which, cases) for cases in zip(*results, strict=True)]
    known = [one for one in found if one is not None]
    return known if len(known) == len(found) else None


def _one_of(context: Context, which: Interval, cases: Sequence[Interval]) -> Interval | None:
    own = cases[0].lo.ndim - context.rank
    which = Interval(*(bound.reshape(bound.shape + (1,) * own).astype(np.int32) for bound in which))
    agreed = together(context, [which, *cases])
    return None if agreed is None else choose(context, agreed[0], agreed[1:])


def scan(context: Context, equation: Any, operands: list[Interval], evaluate: Evaluate) -> list[Interval] | None:
    """A loop with a known number of iterations that carries values and stacks no outputs."""
    body, length = equation.params["jaxpr"], equation.params["length"]
    if length > TURNS or not carries_alone(equation):
        return None
    carried = len(operands) - len(body.jaxpr.outvars)
    fixed, carry = operands[:carried], operands[carried:]
    for _ in range(length):
        carry = evaluate(context, body.jaxpr, body.consts, [*fixed, *carry])
    return carry


def while_loop(context: Context, equation: Any, operands: list[Interval], evaluate: Evaluate) -> list[Interval] | None:
    """A loop that is seen to end. Where it has ended already, values stay as they are."""
    if context.xp is not np:
        return None
    params = equation.params
    test, body = params["cond_jaxpr"], params["body_jaxpr"]
    of_test, of_body = params["cond_nconsts"], params["body_nconsts"]
    for_test, for_body = operands[:of_test], operands[of_test : of_test + of_body]
    carry = operands[of_test + of_body :]
    for _ in range(TURNS + 1):
        (goes_on,) = evaluate(context, test.jaxpr, test.consts, [*for_test, *carry])
        if not goes_on.hi.any():
            return carry
        after = evaluate(context, body.jaxpr, body.consts, [*for_body, *carry])
        carry = _chosen(context, goes_on, [carry, after])
        if carry is None:
            return None
    return None


RULES = {"cond": cond, "scan": scan, "while": while_loop}
"""Like `primitives.RULES`, with the function that evaluates a jaxpr as the last argument."""

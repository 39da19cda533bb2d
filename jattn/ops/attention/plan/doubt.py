"""Explains needlessly partial tiles: the operation that loses information, its line, and what would help.

A tile that is visited although it is empty, or masked although it is full, is evaluated twice, as a whole and pair by
pair. Where the bounds for the whole tile are wider than the values of its pairs, information was lost. The first
equation whose loss decides the result is reported.
"""

import linecache
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ....masks.base import Mask
from .bounds import Interval
from .intervals import Question, ask
from .plan import EMPTY, PARTIAL, Plan, states_of
from .refine import search

SAMPLE = 64
"""The number of partial tiles that are examined."""
BUDGET = 2**22
"""See `refine.BUDGET`."""

NO_RULE = (
    "Nothing is known of its result. If it depends on one position alone, compute it beforehand for every position and "
    "index that array: `table[k]`. Otherwise add a condition with `&` that excludes pairs it cannot allow."
)
ROUNDED = "Floats are known up to a device's rounding: compare integers, or numbers that are further apart."
TOGETHER = (
    "Its operands depend on each other in ways that bounds of a whole tile cannot express. Smaller tiles help "
    "(`jattn.implementations.Tiled(q_tile=..., k_tile=...)`), as does a simpler condition that it implies, added "
    "with `&`."
)

NEEDLESS = "tiles may be visited, or masked, needlessly because of"

_JAX = os.path.dirname(os.path.abspath(jax.__file__))
_HERE = Path(__file__).parents[3]
_MACHINERY = tuple(str(_HERE / name) for name in ("ops/attention/plan", "foundation"))


def doubt(mask: Mask | None, query_positions: Any, key_positions: Any, plan: Plan) -> str | None:
    """In words, what keeps tiles partial that are empty or full, and what would help; None if there are no such tiles.

    Args:
        mask: aligned to the call, or None.
        query_positions: as in `make_plan`.
        key_positions: as in `make_plan`.
        plan: the plan of the mask.
    """
    if mask is None or 0 in (plan.q_len, plan.kv_len):
        return None
    question = ask(mask, query_positions, key_positions)
    if not question.known:
        path = _without_rule(question, plan)
        return f"{NEEDLESS} {_place(path)}. {NO_RULE}" if path else None
    states = states_of(question, plan.q_tile, plan.k_tile)
    states = np.broadcast_to(states, (*question.lead, *states.shape[-2:]))
    partial = np.argwhere(states == PARTIAL)
    if not len(partial):
        return None
    tiles = partial[np.unique(np.linspace(0, len(partial) - 1, SAMPLE).astype(int))]
    found = search(question, tiles, plan.q_tile, plan.k_tile, BUDGET)
    verdicts = found.verdicts()
    wrong, unknown = np.flatnonzero(verdicts != PARTIAL), np.flatnonzero(found.undecided)
    if not len(wrong) and not len(unknown):
        return None
    place, help_ = _explained(found.tile(int([*wrong, *unknown][0])), plan)
    if not len(wrong):
        return f"{NEEDLESS} {place}. {help_}"
    empty = int((verdicts == EMPTY).sum())
    what = f"of {len(tiles)} partial tiles checked, {empty} allow no pair and {len(wrong) - empty} allow every pair"
    return f"{what}. This is lost at {place}. {help_}"


def _without_rule(question: Question, plan: Plan) -> tuple[Any, ...] | None:
    """The first equation whose result is completely unknown."""
    lost: list[tuple[Any, ...]] = []

    def watch(path, results, known):
        if not known:
            lost.append(path)
        return results

    question.allowed(plan.q_tile, plan.k_tile, watch)
    return lost[0] if lost else None


def _explained(tile: Question, plan: Plan) -> tuple[str, str]:
    """The equation that loses the information about a tile, and what would help."""
    exact: list[tuple[tuple[Any, ...], list[Interval], bool]] = []

    def record(path, results, known):
        exact.append((path, results, known))
        return results

    truth = _hull(tile.allowed(1, 1, record))
    rough: list[list[Interval]] = []

    def note(path, results, known):
        rough.append(results)
        return results

    tile.allowed(plan.q_tile, plan.k_tile, note)
    lost = [
        number
        for number, (one, (_, results, known)) in enumerate(zip(rough, exact, strict=True))
        if not known or any(_is_wider(a, b) for a, b in zip(one, results, strict=True))
    ]
    decided = bool(truth.lo.all() == truth.hi.any())
    for number in lost if decided else ():
        replaced = [_hull(one) for one in exact[number][1]]
        if exact[number][2] and _hull(_with(tile, plan, number, replaced)) == truth:
            return _place(exact[number][0]), TOGETHER
    for path, results, known in exact:
        if not known:
            return _place(path), NO_RULE
        if any(one.lo.dtype == np.bool_ and bool((one.hi & ~one.lo).any()) for one in results):
            return _place(path), ROUNDED
    return _place(exact[lost[0] if lost else -1][0]), TOGETHER


def _with(tile: Question, plan: Plan, number: int, results: list[Interval]) -> Interval:
    """The verdict on the tile if one equation, by its number, had these results."""
    count = iter(range(10**9))
    return tile.allowed(plan.q_tile, plan.k_tile, lambda _, found, known: results if next(count) == number else found)


def _hull(interval: Interval) -> Interval:
    """The bounds over all pairs (the first three axes)."""
    if interval.lo.dtype == np.bool_:
        return Interval(interval.lo.all((0, 1, 2), keepdims=True), interval.hi.any((0, 1, 2), keepdims=True))
    return Interval(interval.lo.min((0, 1, 2), keepdims=True), interval.hi.max((0, 1, 2), keepdims=True))


def _is_wider(a: Interval, b: Interval) -> bool:
    """Whether a is wider than b by more than rounding."""
    a, b = _hull(a), _hull(b)
    if a.lo.dtype == np.bool_:
        return bool(((b.lo & ~a.lo) | (a.hi & ~b.hi)).any())
    room = 1e-3 * (abs(b.lo) + abs(b.hi)) if a.lo.dtype.kind == "f" else 0
    unknown = (a.lo != a.lo) & (b.lo == b.lo)
    return bool((unknown | (a.lo < b.lo - room) | (a.hi > b.hi + room)).any())


def _place(path: Sequence[Any]) -> str:
    """The primitive, and its line in the user's function."""
    names = [str(one.params["name"]) if "name" in one.params else one.primitive.name for one in path]
    # The body of a JAX function was traced when it was first called elsewhere; report the line of this call instead.
    depth = len(path) - 1
    while depth > 0 and not _is_of(_frame(path[depth]), names[depth - 1]):
        depth -= 1
    frame = _frame(path[depth])
    if frame is None:
        return f"`{names[depth]}`"
    file, line, function = frame
    text = linecache.getline(file, line).strip()
    shown = f": `{text if len(text) <= 90 else text[:87] + '...'}`" if text else ""
    return f"`{names[depth]}` in `{function}`, {os.path.basename(file)} line {line}{shown}"


def _is_of(frame: tuple[str, int, str] | None, function: str) -> bool:
    return frame is not None and frame[2].split(".")[-1] == function


def _frame(equation: Any) -> tuple[str, int, str] | None:
    """The innermost frame that belongs neither to JAX nor to the plan: file, line, function."""
    traceback = getattr(getattr(equation, "source_info", None), "traceback", None)
    for frame in getattr(traceback, "frames", ()):
        file = os.path.abspath(frame.file_name)
        if not file.startswith((_JAX + os.sep, *_MACHINERY)):
            return frame.file_name, frame.line_num, frame.function_name
    return None

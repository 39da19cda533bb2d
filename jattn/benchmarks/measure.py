"""Paired timing: two functions are measured in alternation, so that noise from other work affects both alike."""

import dataclasses
import statistics
import time

from .sides import Run

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""Wall-clock time, or the CPU time of all threads (for a machine that is shared with other work)."""

FEWEST = 3
"""The minimum number of rounds, even for a slow pair."""

QUICK = 2.0
"""Calls faster than this (in seconds) get an untimed warm-up call of the same side before each timed one.

Otherwise the time would include reallocating the memory that was returned to the system while the other side ran. After
a scan that keeps 1 GiB, this doubled the time of the next call.
"""


@dataclasses.dataclass(frozen=True)
class Times:
    """The seconds of each round of one side."""

    rounds: tuple[float, ...]

    @property
    def least(self) -> float:
        return min(self.rounds)

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def ratio(self, other: "Times") -> float:
        """The median over rounds of this side's time divided by the other's. What slows down both sides cancels."""
        return statistics.median(mine / theirs for mine, theirs in zip(self.rounds, other.rounds, strict=True))


def once(run: Run, clock: str) -> float:
    """The seconds of one call."""
    now = CLOCKS[clock]
    begin = now()
    run()
    return now() - begin


def paired(first: Run, second: Run, *, rounds: int, seconds: float, clock: str = "wall") -> tuple[Times, Times]:
    """Time both sides in every round, alternating which goes first, after two warm-up calls of each.

    Args:
        first: one side.
        second: the other side.
        rounds: the number of rounds.
        seconds: no round starts after this time, once there are `FEWEST`.
        clock: one of `CLOCKS`.
    """
    sides = (first, second)
    for run in sides:
        run()
    quick = [once(run, "wall") < QUICK for run in sides]
    found: tuple[list[float], list[float]] = ([], [])
    begin = time.perf_counter()
    for index in range(rounds):
        if index >= FEWEST and time.perf_counter() - begin > seconds:
            break
        for side in (0, 1) if index % 2 == 0 else (1, 0):
            if quick[side]:
                sides[side]()
            found[side].append(once(sides[side], clock))
    return Times(tuple(found[0])), Times(tuple(found[1]))


def alone(run: Run, *, rounds: int, seconds: float, clock: str = "wall") -> Times:
    """Time one side whose peer is not available."""
    return paired(run, lambda: None, rounds=rounds, seconds=seconds, clock=clock)[0]

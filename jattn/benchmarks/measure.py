"""Measuring two things that share a machine with others: side by side, round by round."""

import dataclasses
import statistics
import time

from .sides import Run

FEWEST = 3
"""Rounds that even a slow pair gets."""


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of each round of one side."""

    rounds: tuple[float, ...]

    @property
    def least(self) -> float:
        return min(self.rounds)

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def ratio(self, other: "Times") -> float:
        """The median over rounds of this side's time by the other's: what slows both down cancels."""
        return statistics.median(mine / theirs for mine, theirs in zip(self.rounds, other.rounds, strict=True))


def once(run: Run) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def paired(first: Run, second: Run, *, rounds: int, seconds: float) -> tuple[Times, Times]:
    """Time both in every round, who goes first alternating, after one call of each that compiles.

    Args:
        first: one side.
        second: the other.
        rounds: how many rounds.
        seconds: no round starts later than this, once there are `FEWEST`.
    """
    first(), second()
    found: tuple[list[float], list[float]] = ([], [])
    begin = time.perf_counter()
    for index in range(rounds):
        if index >= FEWEST and time.perf_counter() - begin > seconds:
            break
        for side in (0, 1) if index % 2 == 0 else (1, 0):
            found[side].append(once((first, second)[side]))
    return Times(tuple(found[0])), Times(tuple(found[1]))


def alone(run: Run, *, rounds: int, seconds: float) -> Times:
    """Time one side whose peer is missing."""
    return paired(run, lambda: None, rounds=rounds, seconds=seconds)[0]

"""Measuring two things that share a machine with others: side by side, round by round."""

import dataclasses
import statistics
import time

from .sides import Run

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""Time that passes; or the CPU time of all threads, for a machine whose cores are shared with other work."""

FEWEST = 3
"""Rounds that even a slow pair gets."""

QUICK = 2.0
"""Seconds up to which a timed call follows another of its own: else the memory that the other side gave back to the
system, and that must be asked for anew, is counted. A scan that keeps 1 GiB doubled the next call's time so."""


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


def once(run: Run, clock: str) -> float:
    """Seconds of one call."""
    now = CLOCKS[clock]
    begin = now()
    run()
    return now() - begin


def paired(first: Run, second: Run, *, rounds: int, seconds: float, clock: str = "wall") -> tuple[Times, Times]:
    """Time both in every round, who goes first alternating, after two calls of each, the first of which compiles.

    Args:
        first: one side.
        second: the other.
        rounds: how many rounds.
        seconds: no round starts later than this, once there are `FEWEST`.
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
    """Time one side whose peer is missing."""
    return paired(run, lambda: None, rounds=rounds, seconds=seconds, clock=clock)[0]

"""The results of an experiment, and its command line."""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Self


@dataclasses.dataclass(frozen=True)
class Result:
    """A figure, compared with that of a baseline.

    Attributes:
        what: what is measured, with its unit.
        ours: the figure of the variant.
        baseline: the figure of the baseline.
        against: the name of the baseline.
        bar: the target for `ours`.
        at_most: whether lower is better.
    """

    what: str
    ours: float
    baseline: float
    against: str
    bar: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether the figure reaches the target and beats the baseline."""
        if self.at_most:
            return self.ours <= self.bar and self.ours <= self.baseline
        return self.ours >= self.bar and self.ours >= self.baseline

    def __str__(self) -> str:
        verdict = "" if self.met else ", NOT REACHED"
        return f"{self.what} {self.ours:.3g}, against {self.baseline:.3g} of {self.against} ({self.wanted}{verdict})"

    @property
    def wanted(self) -> str:
        """The target, in words."""
        return f"at {'most' if self.at_most else 'least'} {self.bar:g}"


@dataclasses.dataclass(frozen=True)
class Spread:
    """The same figure for several seeds: its median and, if they differ, its range."""

    results: Sequence[Result]

    @classmethod
    def of(cls, runs: Sequence[Sequence[Result]]) -> Sequence[Self]:
        """One `Spread` per figure, from the results of one run per seed."""
        return [cls(results) for results in zip(*runs, strict=True)]

    @property
    def ours(self) -> str:
        """The figure of the variant."""
        return _median_and_range([one.ours for one in self.results])

    @property
    def baseline(self) -> str:
        """The figure of the baseline."""
        return _median_and_range([one.baseline for one in self.results])

    @property
    def verdict(self) -> str:
        """Empty if all seeds meet the target."""
        missed = sum(not one.met for one in self.results)
        return f" **missed {missed} of {len(self.results)} times**" if missed else ""

    def short(self) -> str:
        """A cell of the table of variants."""
        first = self.results[0]
        return f"{first.what} {self.ours} ({first.against} {self.baseline}){self.verdict}"


def _median_and_range(figures: Sequence[float]) -> str:
    middle, low, high = (f"{kind(figures):.3g}" for kind in (statistics.median, min, max))
    return middle if low == high else f"{middle} [{low}, {high}]"


def main(run: Callable[..., Sequence[Result]], about: str | None) -> None:
    """Run an experiment as a script, in full or (with `--fast`) in its reduced form.

    Args:
        run: `run(fast=..., seed=...)` returns the results.
        about: the script's docstring.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--fast", action="store_true", help="a reduced form, with its own targets")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    begin = time.perf_counter(), time.process_time()
    for result in run(fast=asked.fast, seed=asked.seed):
        print(result)
    print(f"in {time.perf_counter() - begin[0]:.0f} s, {time.process_time() - begin[1]:.0f} s of processor time")

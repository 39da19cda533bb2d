"""Run rows of the benchmark and format the results."""

import math
import os
import platform
from collections.abc import Sequence

import jax

from . import peers
from .cases import STEEPEST, Memory, Speed
from .measure import alone, paired
from .row import HEAD, Measurable, Row

SECONDS = 60.0
"""The time limit for the timed rounds of a row."""


def run(case: Speed | Memory | Measurable, *, rounds: int, clock: str = "wall") -> Row:
    """Measure one row."""
    if isinstance(case, Speed):
        return _speed(case, rounds, clock)
    return _memory(case) if isinstance(case, Memory) else case.run()


def _speed(case: Speed, rounds: int, clock: str) -> Row:
    rounds = min(rounds, case.rounds or rounds)
    how = {"rounds": rounds, "seconds": SECONDS, "clock": clock}
    missing = case.other.missing()
    bar = f"{'at most' if case.bar.at_most else 'at least'} {case.bar.value:g}"
    if missing:
        ours = alone(case.ours.build(case.shape), **how)
        told = f"{case.other.label}: {missing}"
        details = {"ours": ours.rounds}
        return Row(case.name, case.what, str(case.shape), _seconds(ours.median), told, None, "-", bar, None, details)
    ours, other = paired(case.ours.build(case.shape), case.other.build(case.shape), **how)
    ratio = ours.ratio(other) if case.bar.at_most else other.ratio(ours)
    figure = case.factor(case.shape) * ratio
    return Row(
        case.name,
        case.what,
        str(case.shape),
        f"{_seconds(ours.median)} ({_seconds(ours.least)})",
        f"{case.other.label} {_seconds(other.median)} ({_seconds(other.least)})",
        figure,
        f"{figure:.2f} {case.unit}",
        bar,
        case.bar.met(figure),
        {"ours": ours.rounds, "other": other.rounds},
    )


def _memory(case: Memory) -> Row:
    assert case.ours.temporaries is not None and case.other.temporaries is not None
    ours = [case.ours.temporaries(shape) / 2**20 for shape in case.shapes]
    other = [case.other.temporaries(shape) / 2**20 for shape in case.shapes]
    before, after = ours[-2] - ours[-3], ours[-1] - ours[-2]
    linear = after <= STEEPEST * max(before, 0) + 1
    lengths = " / ".join(str(shape.length) for shape in case.shapes)
    return Row(
        case.name,
        case.what,
        str(case.shapes[-1]).replace(f" {case.shapes[-1].length} ", f" {lengths} "),
        " / ".join(f"{mib:.0f}" for mib in ours) + " MiB",
        f"{case.other.label} " + " / ".join(f"{mib:.0f}" for mib in other) + " MiB",
        ours[-1],
        f"{ours[-1]:.0f} MiB, {'linear' if linear else 'not linear'}",
        f"at most {case.bar.value:g} MiB, linear",
        case.bar.met(ours[-1]) and linear,
        {"ours": ours, "other": other},
    )


def _seconds(seconds: float) -> str:
    digits = max(0, 2 - math.floor(math.log10(seconds))) if seconds > 0 else 0
    return f"{seconds:.{min(digits, 6)}f} s"


def versions() -> str:
    """The versions of Python and JAX."""
    return f"Python {platform.python_version()}, jax {jax.__version__}"


def environment(clock: str = "wall") -> str:
    """One line that says what the figures were measured with: versions, device, matmul rate, clock."""
    product = alone(peers.matmul_run(), rounds=7, seconds=SECONDS, clock=clock)
    rate = 2 * peers.MATMUL**3 / product.least / 1e9
    a_core = " a core" if clock == "cpu" else ""
    times = {"wall": "wall clock", "cpu": "CPU time of all threads"}[clock]
    found = versions()
    device = jax.devices()[0]
    kind = "CPU" if device.platform == "cpu" else device.device_kind
    return (
        f"{found}, PyTorch {peers.torch_version() or 'not installed'}; {kind}, {os.cpu_count()} cores; "
        f"float32 matmul {rate:.0f} GFLOP/s{a_core} at best; {times}, medians (least)"
    )


def markdown(rows: Sequence[Row], about: str) -> str:
    """The results as a Markdown table. Times are medians, with the minimum in parentheses."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in rows]
    return "\n".join([about, "", *lines, ""])

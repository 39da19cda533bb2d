"""Compile a kernel in a process of its own, and return what the TPU compiler says about it."""

import argparse
import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import cycles, schedule
from .compiler import ENVIRONMENT, lower
from .cycles import Growth
from .kernels import KERNELS
from .schedule import Region, Schedule

LENGTHS = (2, 4, 6)
"""Tiles of queries and of keys. Their second difference is the cost of a tile."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the compiler says about a kernel.

    Attributes:
        schedule: at the first length.
        cycles: the estimate for each number of tiles; None if the compiler could not make one.
        heads: the query heads of the program.
        unrolled: the tiles of one head in the hot region of the kernel.
        seconds: the longest time that it took to compile.
    """

    schedule: Schedule
    cycles: dict[int, int] | None
    heads: int
    unrolled: float
    seconds: float

    @property
    def growth(self) -> Growth | None:
        """Of the cycles, for one head."""
        if self.cycles is None:
            return None
        return Growth.of({tiles: cycles / self.heads for tiles, cycles in self.cycles.items()})

    @property
    def bundles(self) -> float:
        """Of a tile of one head: those of the hot loop, divided by the tiles in it."""
        return sum(region.bundles for region in self.schedule.body) / self.unrolled


def measure(kernel: str, generation: str) -> Measured:
    """Compile a kernel of `kernels.KERNELS` for a generation, or wait for it.

    The compiler ends its process where its simulation does not know an instruction. The kernel is then compiled again,
    without an estimate.

    Raises:
        RuntimeError: it does not compile; with the last line of the error.
    """
    return start(kernel, generation).result()


@functools.cache
def start(kernel: str, generation: str) -> Future[Measured]:
    """Begin to compile, with as many others at once as there are cores."""
    return _workers().submit(_measured, kernel, generation)


@functools.cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count())


def _measured(kernel: str, generation: str) -> Measured:
    wanted = KERNELS[kernel].estimated
    found = _compiled(kernel, generation, LENGTHS, estimate=True) if wanted else None
    estimated = found is not None
    if found is None:
        found = _compiled(kernel, generation, LENGTHS[:1], estimate=False)
    if found is None:
        raise RuntimeError(f"the compiler of {generation} ended its process on `{kernel}`.")
    hot = tuple(Region(**region) for region in found[0]["hot"])
    estimates = {run["tiles"]: run["cycles"] for run in found}
    known = estimated and all(estimates.values())
    seconds = max(run["seconds"] for run in found)
    heads, unrolled = found[0]["heads"], found[0]["unrolled"]
    return Measured(Schedule(found[0]["bundles"], hot), estimates if known else None, heads, unrolled, seconds)


def _compiled(kernel: str, generation: str, lengths: tuple[int, ...], *, estimate: bool) -> list[dict[str, Any]] | None:
    """What the other process found; None if the compiler ended it."""
    options = schedule.OPTIONS + (cycles.OPTIONS if estimate else ())
    with tempfile.TemporaryDirectory() as folder:
        flags = [os.environ.get("LIBTPU_INIT_ARGS", ""), *(option.format(folder=folder) for option in options)]
        own = {"JAX_PLATFORMS": "cpu", "JAX_TRACEBACK_FILTERING": "off", "LIBTPU_INIT_ARGS": " ".join(flags).strip()}
        environment = os.environ | ENVIRONMENT | own
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # a program from a cache prints nothing
        command = [sys.executable, "-m", __name__, kernel, generation, folder, *map(str, lengths)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        return None
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise RuntimeError(f"`{kernel}` does not compile for {generation}: {said[-1][:500]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """The other process: compiles and prints what it found, as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("kernel", choices=KERNELS)
    parser.add_argument("generation")
    parser.add_argument("folder", type=Path)
    parser.add_argument("lengths", nargs="+", type=int)
    asked = parser.parse_args()
    kernel, found = KERNELS[asked.kernel], []
    for tiles in asked.lengths:
        program = kernel.program(tiles, asked.generation)
        lowered = lower(asked.generation, program.function, program.arguments)
        start = time.perf_counter()
        lowered.compile()
        seconds = time.perf_counter() - start
        run = {"tiles": tiles, "heads": program.heads, "unrolled": program.unrolled, "seconds": seconds}
        run["cycles"] = cycles.read(asked.folder).get(kernel.name)
        found.append(run | dataclasses.asdict(schedule.read(asked.folder)[kernel.name]))
        for path in asked.folder.iterdir():
            path.unlink()
    print(json.dumps(found))


if __name__ == "__main__":
    main()

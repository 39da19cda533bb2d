"""Read the schedule that the TPU compiler prints: the bundles of the regions that use the matrix unit."""

import dataclasses
import itertools
import re
from pathlib import Path

MATRIX_UNIT = ("MXU", "MATMUL", "MATPUSH")
"""The names of the matrix unit's columns: one, or two in later compilers."""

OPTIONS = (
    "--xla_jf_dump_to={folder}",
    "--xla_jf_dump_llo_text=true",
    "--xla_jf_dump_llo_pass_label_regex=final_",  # of some sixty passes, the last
)
"""Options of libtpu that make it print the final schedule."""

_BUNDLE = re.compile(r"\s*(0x[0-9a-f]+|0)\s.*?:\s*(>*)\s*\{")
_BRANCH = re.compile(r"/\* (Start|End).*region|\b(LB|PF|PB|CT):")


@dataclasses.dataclass(frozen=True)
class Region:
    """A part of a program without branches.

    Attributes:
        bundles: the number of its bundles.
        loop: the number of the loop that it is in, as they appear in the program.
        depth: the number of loops around it; the grid is one.
        fill: of each unit, the share of its slots that are used.
    """

    bundles: int
    loop: int
    depth: int
    fill: dict[str, float]

    @property
    def matrix_unit(self) -> float:
        """The share of the slots of the matrix unit that are used."""
        return max(self.fill.get(name, 0) for name in MATRIX_UNIT)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The schedule of a kernel.

    Attributes:
        bundles: the number of all bundles.
        hot: the regions that use the matrix unit, in the order of the program.
    """

    bundles: int
    hot: tuple[Region, ...]

    @property
    def body(self) -> list[Region]:
        """The hot regions of the hot loop: of the innermost loops, the one that uses the matrix unit most."""
        depth = max((region.depth for region in self.hot), default=0)
        inner = [region for region in self.hot if region.depth == depth]
        loops = [[region for region in inner if region.loop == loop] for loop in {region.loop for region in inner}]
        return max(loops, key=lambda loop: sum(region.bundles * region.matrix_unit for region in loop), default=[])


def read(folder: Path) -> dict[str, Schedule]:
    """The schedules that were printed into a folder, by the name of the kernel."""
    found = {}
    for table in sorted(folder.glob("*-final_hlo-static-per-bundle-utilization.txt")):
        program = _program(table)
        texts = (path for path in folder.glob("*-final_bundles.txt") if "schedule-analysis" not in path.name)
        for text in texts:
            if _program(text) == program:
                found[program[1]] = parse(table.read_text(encoding="utf-8"), text.read_text(encoding="utf-8"))
    return found


def _program(path: Path) -> tuple[str, str]:
    """The number and the kernel of a file such as `123-splash.1-02-final_bundles.txt`."""
    matched = re.match(r"(\d+)-(.*?)(?:\.\d+)?-\d+-", path.name)
    return (matched.group(1), matched.group(2)) if matched else ("", path.name)


def parse(table: str, text: str) -> Schedule:
    """The schedule from the two files that the compiler prints for a kernel.

    Args:
        table: a line of names, a line of the slots that each unit has, a title, and the used slots of each bundle.
        text: the bundles, numbered, with a `>` for each loop around them, and labels where the program branches.
    """
    _, names, slots, _, *rows = table.splitlines()
    names = [name.strip() for name in names.split(",")]
    sizes = dict(zip(names, map(int, slots.split()), strict=True))
    used = [list(map(int, row.split())) for row in rows if row.strip()]
    cuts, depths = {0, len(used)}, [0] * (len(used) + 1)
    for line in text.splitlines():
        bundle = _BUNDLE.match(line)
        if bundle is None:
            continue
        number = min(int(bundle.group(1), 16), len(used))
        depths[number] = len(bundle.group(2))
        if _BRANCH.search(line):
            cuts.add(number)
        if "sbr.rel" in line:
            cuts.add(min(number + 1, len(used)))
    hot = []
    for start, stop in itertools.pairwise(sorted(cuts)):
        filled = dict(zip(names, map(sum, zip(*used[start:stop], strict=True)), strict=True))
        if any(filled.get(name, 0) for name in MATRIX_UNIT):
            length, depth = stop - start, depths[start]
            loop = sum(before < depth <= here for before, here in itertools.pairwise(depths[: start + 1]))
            hot.append(Region(length, loop, depth, {name: filled[name] / (length * sizes[name]) for name in names}))
    return Schedule(len(used), tuple(hot))

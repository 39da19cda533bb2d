"""The TPU compiler's own estimate of a kernel's cycles, and how it grows with the number of tiles."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

OPTIONS = (
    "--xla_jf_dump_static_llo_profile_to={folder}",
    # XLA moves short operands to vector memory, and the simulation cannot copy from there. Those of long calls stay.
    "--xla_msa_enable=false",
)
"""Options of libtpu that make it write its estimates."""


def read(folder: Path) -> dict[str, int]:
    """The estimates that were written into a folder, by the name of the kernel."""
    found: dict[str, int] = {}
    for path in folder.glob("*_static_llo_profile.textproto"):
        cycles = re.search(r"estimated_cycles: (\d+)", path.read_text(encoding="utf-8"))
        if cycles:
            name = re.sub(r"(\.\d+)?(_TPU[^_]*)?_static_llo_profile\.textproto", "", path.name)
            found[name] = max(found.get(name, 0), int(cycles.group(1)))
    return found


@dataclasses.dataclass(frozen=True)
class Growth:
    """Cycles of a kernel on n x n tiles, `tile n² + row n + once`.

    Attributes:
        tile: of one more tile (of all heads of the kernel).
        row: of one more tile of queries.
        once: of the kernel.

    >>> Growth.of({2: 26, 4: 76, 6: 158})
    Growth(tile=4.0, row=1.0, once=8.0)
    """

    tile: float
    row: float
    once: float

    @classmethod
    def of(cls, cycles: Mapping[int, float]) -> "Growth":
        """From the cycles at three equally spaced n. `tile` is their second difference.

        Raises:
            ValueError: it is not three, or not equally spaced.
        """
        (n, first), (_, second), (last, third) = sorted(cycles.items())
        step = sorted(cycles)[1] - n
        if last - n != 2 * step:
            raise ValueError(f"`cycles` must be of three equally spaced numbers of tiles; got {sorted(cycles)}.")
        tile = (third - 2 * second + first) / (2 * step**2)
        row = (second - first) / step - tile * (2 * n + step)
        return cls(tile, row, first - tile * n**2 - row * n)

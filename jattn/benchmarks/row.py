"""The result of a row of a benchmark, as every suite prints it."""

import dataclasses
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class Row:
    """The result of a row. `figure` is None if the other side is missing."""

    name: str
    what: str
    shape: str
    ours: str
    other: str
    figure: float | None
    shown: str
    bar: str
    met: bool | None
    details: dict[str, Any]

    def cells(self) -> tuple[str, ...]:
        met = {True: "yes", False: "**no**", None: "-"}[self.met]
        return self.what, self.shape, self.ours, self.other, self.shown, self.bar, met


HEAD = ("what", "shape", "jattn", "compared with", "figure", "target", "met")


class Compiled(Protocol):
    """A row of programs that are compiled and not run."""

    @property
    def name(self) -> str: ...

    def run(self) -> Row:
        """Compile, and return what the compiler says."""
        ...

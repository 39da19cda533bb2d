"""The result of a row of a benchmark, as every suite prints it."""

import dataclasses
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class Row:
    """The result of a row.

    Attributes:
        name: selects the row on the command line.
        what: what is measured.
        shape: at which sizes.
        ours, other: what was found for jattn, and for what it is compared with.
        figure: what is held against the target; None if it could not be measured, as where the other side is missing.
        shown: the figure, with its unit.
        bar: the target; "-" if there is none.
        met: whether the figure meets the target; None without a figure or a target.
        details: all measurements, for `--json`.
    """

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
        """The cells of the table, under `HEAD`."""
        met = {True: "yes", False: "**no**", None: "-"}[self.met]
        return self.what, self.shape, self.ours, self.other, self.shown, self.bar, met


HEAD = ("what", "shape", "jattn", "compared with", "figure", "target", "met")


class Measurable(Protocol):
    """A row that measures itself: a program that is compiled and not run, or a page."""

    @property
    def name(self) -> str: ...

    def run(self) -> Row:
        """Measure, and return the result."""
        ...

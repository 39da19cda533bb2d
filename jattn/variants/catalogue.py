"""The table of variants, derived from the docstrings of public names.

Docstrings follow these conventions, so that a row can be parsed from them:

- The first line of a variant is `Name: what it is.` A public name whose docstring has such a title and cites a paper is
  a row. If a layer and a function share a name, the layer is the row. All masks, scores, similarities and normalizers
  are rows, under the names of their classes.
- The first source is the paper: `Author et al. 2020 (arXiv:2001.00001)`, or author and year alone.
- An experiment is mentioned by its path, `examples/experiments/name.py`.

Tests mirror the package, so the location of a name also gives the location of its tests.
"""

import dataclasses
import importlib
import inspect
import json
import re
from pathlib import Path

from ..foundation.pieces import Piece

PIECES = ("similarities", "scores", "normalizers", "masks")
FOLDERS = (
    "seq2seq",
    "pooling",
    "selection",
    "heads",
    "sparse",
    "low_rank",
    "kernelized",
    "recurrent",
    "attention_free",
    "structured",
    "memory",
    "gated",
    "vision",
)
"""The order of the table: rooms of pieces, and folders of this package."""

_TITLE = re.compile(r"([^:`.()]{2,40}(?: \([\w ]+\))?): (.+)")
_NAME = r"[A-ZÀ-Ž][\w’'-]+"
_AUTHORS = rf"{_NAME}(?:(?:, {_NAME})*,? & {_NAME}| et al\.| Team)?"
_NUMBER = r"arXiv:[\d.]+\d"
_SOURCES = (
    re.compile(rf"({_AUTHORS}),? \(?(\d{{4}})\b(?:[^.]{{0,12}}?({_NUMBER}))?"),
    re.compile(rf"\(([^():;]*?),? ?()({_NUMBER})"),
)
_EXPERIMENT = re.compile(r"examples/experiments/(\w+)\.py")


@dataclasses.dataclass(frozen=True)
class Variant:
    """A row of the table.

    Attributes:
        name: the name used in the field.
        summary: one line.
        paper: author, year and arXiv number; empty if there is none.
        where: its public name, such as `jattn.variants.low_rank.Linformer`.
        tests: a file or folder, relative to the root of the repository.
        experiment: a script of `examples/experiments`, without `.py`, that demonstrates it.
    """

    name: str
    summary: str
    paper: str
    where: str
    tests: str
    experiment: str | None = None


def catalogue() -> dict[str, tuple[Variant, ...]]:
    """The variants of each room of pieces and each folder of variants.

    >>> catalogue()["low_rank"][0].where
    'jattn.variants.low_rank.Linformer'
    """
    package = __name__.rpartition(".")[0]
    places = {room: f"jattn.{room}" for room in PIECES} | {folder: f"{package}.{folder}" for folder in FOLDERS}
    return {group: _rows(place) for group, place in places.items()}


def described(thing: object, where: str) -> Variant | None:
    """The row of a public name, parsed from its docstring; None if it is not a row.

    >>> from jattn import masks
    >>> row = described(masks.Strided, "jattn.masks.Strided")
    >>> row.name, row.paper, row.tests
    ('Strided', 'Child et al. 2019, arXiv:1904.10509', 'tests/masks/test_order.py')
    """
    text = inspect.getdoc(thing) or ""
    first = text.partition("\n")[0]
    found = (pattern.search(text) for pattern in _SOURCES)
    source = min((one for one in found if one), key=re.Match.start, default=None)
    if where.split(".")[1] in PIECES:
        name, summary = where.rpartition(".")[2], first
        wanted = isinstance(thing, type) and issubclass(thing, Piece) and not inspect.isabstract(thing)
    else:
        title = _TITLE.fullmatch(first)
        name, summary = title.groups() if title else ("", "")
        wanted = title and source
    module = inspect.getmodule(thing)
    if not wanted or module is None:
        return None
    paper = ""
    if source:
        authors, year, number = source.groups()
        paper = ", ".join(filter(None, (f"{authors} {year}".strip(), number)))
    experiment = _EXPERIMENT.search(text)
    return Variant(
        name, _without_source(summary), paper, where, _tests(module.__name__), experiment[1] if experiment else None
    )


def markdown(figures: Path | None = None) -> str:
    """The table, for `jattn/variants/README.md`.

    Args:
        figures: the file that `examples/experiments/table.py --save` wrote, for the column of figures.
    """
    measured = {} if figures is None else json.loads(figures.read_text(encoding="utf-8"))
    lines = ["| variant | what it is | paper | where | tested in | experiment |", "|---|---|---|---|---|---|"]
    for variants in catalogue().values():
        for one in variants:
            shown = ""
            if one.experiment:
                script = f"[{one.experiment}](../../examples/experiments/{one.experiment}.py)"
                shown = f"{script}: {measured[one.experiment]}" if one.experiment in measured else script
            cells = (one.name, one.summary, one.paper, f"`{one.where}`", f"[test](../../{one.tests})", shown)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def _rows(place: str) -> tuple[Variant, ...]:
    """The public names of a package that are rows; a layer precedes, and stands for, the function of the same name."""
    package = importlib.import_module(place)
    things = {name: getattr(package, name) for name in package.__all__}
    rows: dict[str, Variant] = {}
    for name in sorted(things, key=lambda name: not isinstance(things[name], type)):
        row = described(things[name], f"{place}.{name}")
        if row is not None:
            rows.setdefault(row.name, row)
    return tuple(rows.values())


def _without_source(summary: str) -> str:
    """A sentence without its citation, which has its own column, and without its period."""
    summary = re.sub(rf"\.? (?:{_AUTHORS} \d{{4}} )?\([^()]*{_NUMBER}[^()]*\)(?=\.|;|$)", "", summary)
    return summary.strip().rstrip(".")


def _tests(module: str) -> str:
    """The test file that mirrors a module, if there is one, else the folder."""
    *folders, last = module.split(".")[1:]
    folder = "/".join(("tests", *folders))
    file = f"{folder}/test_{last}.py"
    return file if (Path(__file__).parents[2] / file).exists() else folder

"""The table of variants: what there is, where it is, and how it is known to be right."""

import dataclasses
import importlib
import json
from pathlib import Path

GROUPS = (
    "choices",
    "seq2seq",
    "heads",
    "selection",
    "pooling",
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
"""Folders of this package whose `VARIANTS` make up the table, in this order."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """A row of the table.

    Attributes:
        name: the field's own.
        summary: one line.
        paper: author, year and arXiv number, or where else it is defined.
        where: its public name, such as `jattn.variants.low_rank.linformer`; `jattn.masks.Causal` where it is a piece.
        oracle: the test file in which it equals its definition, from the root of the repository.
        experiment: a script of `examples/experiments`, without `.py`, that shows it at work.
    """

    name: str
    summary: str
    paper: str
    where: str
    oracle: str
    experiment: str | None = None

    def resolve(self) -> object:
        """The object that `where` names.

        Raises:
            AttributeError: there is none.
        """
        parts = self.where.split(".")
        found = importlib.import_module(parts[0])
        for depth, part in enumerate(parts[1:], 2):
            if not hasattr(found, part):
                importlib.import_module(".".join(parts[:depth]))
            found = getattr(found, part)
        return found


def catalogue() -> dict[str, tuple[Variant, ...]]:
    """The variants of each group."""
    package = __name__.rpartition(".")[0]
    return {group: importlib.import_module(f"{package}.{group}.catalogue").VARIANTS for group in GROUPS}


def markdown(figures: Path | None = None) -> str:
    """The table in Markdown, with links relative to this folder.

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
            cells = (one.name, one.summary, one.paper, f"`{one.where}`", f"[test](../../{one.oracle})", shown)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)

"""Writes the notebooks `*.ipynb` from the scripts `*.py` beside them.

    python examples/notebooks/generate.py

A script in the percent format is plain Python: a line `# %%` begins a cell of code, and `# %% [markdown]` one of text,
whose lines are comments. Editors run such cells one by one, jupytext reads them, and Git shows their changes. Colab
opens only `.ipynb` files, so these are kept too, without outputs. A test checks that both agree.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
BEGINS = re.compile(r"^# %%(?: \[(?P<kind>markdown)\])?$", re.MULTILINE)
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class Cell(NamedTuple):
    """A cell.

    Attributes:
        kind: `"code"` or `"markdown"`.
        source: its text, without blank lines around it.
    """

    kind: str
    source: str


def scripts() -> list[Path]:
    """The notebooks, as scripts."""
    return [path for path in sorted(FOLDER.glob("*.py")) if path.name != Path(__file__).name]


def cells(script: str) -> list[Cell]:
    """The cells of a script in the percent format.

    Raises:
        ValueError: there is text before the first cell, or a line of a markdown cell is no comment.

    >>> cells("# %% [markdown]\\n# # Title\\n\\n# %%\\nprint(1)\\n")
    [Cell(kind='markdown', source='# Title'), Cell(kind='code', source='print(1)')]
    """
    before, *parts = BEGINS.split(script)
    if before.strip():
        raise ValueError(f"A script must begin with a cell, `# %%`; got {before.strip().splitlines()[0]!r}.")
    found = []
    for kind, body in zip(parts[::2], parts[1::2], strict=True):
        lines = body.strip("\n").split("\n")
        if kind:
            text = [line for line in lines if line != "#" and not line.startswith("# ")]
            if text:
                raise ValueError(f"Every line of a markdown cell must begin with `# `; got {text[0]!r}.")
            lines = [line[2:] for line in lines]
        found.append(Cell(kind or "code", "\n".join(lines)))
    return found


def notebook(script: str) -> str:
    """The notebook of a script, as the text of an `.ipynb` file."""
    made = []
    for number, cell in enumerate(cells(script)):
        lines = cell.source.splitlines(keepends=True)
        made.append({"cell_type": cell.kind, "id": f"cell-{number}", "metadata": {}, "source": lines})
        if cell.kind == "code":
            made[-1] |= {"execution_count": None, "outputs": []}
    whole = {"cells": made, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main() -> None:
    for path in scripts():
        path.with_suffix(".ipynb").write_text(notebook(path.read_text(encoding="utf-8")), encoding="utf-8")
        print(path.with_suffix(".ipynb").name)


if __name__ == "__main__":
    main()

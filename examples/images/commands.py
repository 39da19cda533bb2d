"""The command line of an example, and the figures that it prints and writes."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from shared.flags import multiple, positive


def parser(
    doc: str | None, *, steps: int, batch: int, features: int, batch_type: Callable[[str], int] = positive
) -> argparse.ArgumentParser:
    """The flags that the examples share, with these defaults.

    Args:
        doc: of the example.
        steps, batch, features: the defaults.
        batch_type: what reads `--batch`.
    """
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--steps", type=positive, default=steps, help=f"of training; by default {steps}")
    made.add_argument("--batch", type=batch_type, default=batch, help="images per step")
    made.add_argument(
        "--features", type=multiple(4), default=features, help="features inside the model, a multiple of 4"
    )
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, help="folder for pictures; by default runs/NAME")
    return made


def report(out: Path, figures: dict[str, float], *, title: str) -> None:
    """Print the figures as a table, and write them to `result.json`."""
    print(f"{title}:")
    width = max(map(len, figures))
    for name, figure in figures.items():
        print(f"  {name:{width}}  {figure:.3f}")
    (out / "result.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")

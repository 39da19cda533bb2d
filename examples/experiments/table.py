"""Run all experiments: `python examples/experiments/table.py [names] [--fast] [--seeds 0 1 2] [--save]`.

A figure is the median over the seeds, with its range in brackets. Seconds are CPU seconds per seed.
"""

import argparse
import importlib
import json
import time
from pathlib import Path

from report import Spread

HERE = Path(__file__).parent
FIGURES = HERE / "figures.json"
NAMES = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in ("report", "table"))


def main() -> None:
    """Run the experiments, print a table, and with `--save` store the figures for the table of variants."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"by default all: {', '.join(NAMES)}")
    parser.add_argument("--fast", action="store_true", help="reduced forms, with their own targets")
    parser.add_argument("--save", action="store_true", help=f"write {FIGURES.name}, for jattn/variants/README.md")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    asked = parser.parse_args()
    unknown = set(asked.names) - set(NAMES)
    if unknown:
        parser.error(f"no experiment {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if asked.save and asked.fast:
        parser.error("`--save` keeps figures of the full experiments: leave out `--fast`")
    figures = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
    figures = {name: figure for name, figure in figures.items() if name in NAMES}
    print("| experiment | figure | baseline | target | s |\n|---|---|---|---|---|")
    for name in asked.names or NAMES:
        run = importlib.import_module(name).run
        begin = time.process_time()
        spreads = Spread.of([run(fast=asked.fast, seed=seed) for seed in asked.seeds])
        seconds = (time.process_time() - begin) / len(asked.seeds)
        for one in spreads:
            first = one.results[0]
            bar = f"{first.wanted}{one.verdict}"
            print(
                f"| {name} | {first.what} {one.ours} | {first.against} {one.baseline} | {bar} | {seconds:.0f} |",
                flush=True,
            )
        figures[name] = "; ".join(one.short() for one in spreads)
        if asked.save:
            FIGURES.write_text(json.dumps(figures, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()

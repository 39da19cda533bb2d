"""The command line: measure the selected rows, print each as it is done, and write the table."""

import argparse
import dataclasses
import inspect
import json
from pathlib import Path

from . import peak, table
from .cases import Speed
from .measure import CLOCKS
from .row import Row
from .suites import SUITES, about, begin


def main(arguments: list[str] | None = None) -> list[Row]:
    """Parse the command line, then measure and print; returns the rows.

    Args:
        arguments: the command line; by default that of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m jattn.benchmarks",
        description="Compare jattn with other libraries in paired rounds. Figures are medians of per-round ratios.",
    )
    parser.add_argument("--suite", choices=SUITES, default="cpu")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these rows; an unknown name lists all")
    parser.add_argument("--repeats", type=int, default=15, help="rounds per row (fewer if a round is slow)")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: for a machine that is busy with other work"
    )
    parser.add_argument("--length", type=int, help="the usual length, in place of the suite's")
    parser.add_argument("--long", type=int, help="the length of the rows on long sequences, in place of the suite's")
    parser.add_argument("--generations", nargs="+", metavar="NAME", help="TPUs to compile for, such as v5e v6e")
    parser.add_argument(
        "--peaks",
        action="store_true",
        help="also the peak of resident memory while each side runs, in processes of their own",
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table to this file")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write all measurements to this file, with the times of each round"
    )
    asked = parser.parse_args(arguments)
    if asked.repeats < 1:
        parser.error(f"--repeats must be at least 1; got {asked.repeats}")
    options = ("length", "long", "generations")
    sizes = {name: getattr(asked, name) for name in options if getattr(asked, name) is not None}
    unused = [f"--{name}" for name in sizes if name not in inspect.signature(SUITES[asked.suite]).parameters]
    if unused:
        parser.error(f"the suite {asked.suite} has no {', '.join(unused)}")
    try:
        cases = SUITES[asked.suite](**sizes)
    except ValueError as error:
        parser.error(str(error))
    names = [case.name for case in cases]
    unknown = set(asked.rows or ()) - set(names)
    if unknown:
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(names)}")

    described = about(asked.suite, asked.clock)
    print(described, flush=True)
    rows = []
    selected = [case for case in cases if not asked.rows or case.name in asked.rows]
    begin(asked.suite, selected)
    for case in selected:
        row = table.run(case, rounds=asked.repeats, clock=asked.clock)
        if asked.peaks and isinstance(case, Speed):
            peaks = {side: peak.measured(asked.suite, case.name, side, sizes) for side in peak.SIDES}
            ours, other = (
                text + peak.shown(one) for text, one in zip((row.ours, row.other), peaks.values(), strict=True)
            )
            row = dataclasses.replace(row, ours=ours, other=other, details={**row.details, "peaks": peaks})
        rows.append(row)
        print(f"[{case.name}]", " | ".join(row.cells()), flush=True)
    if asked.markdown:
        asked.markdown.write_text(table.markdown(rows, described), encoding="utf-8")
    if asked.json:
        found = {"about": described, "rows": [dataclasses.asdict(row) for row in rows]}
        asked.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return rows


if __name__ == "__main__":
    main()

"""The peak of resident memory of one side of a row, in a process of its own.

    python -m jattn.benchmarks.peak models gpt2-prefill other '{"length": 64}'

The process builds the side and runs it twice, after which memory for compiling and initializing is no longer in use.
Then Linux forgets the peak so far (`/proc/self/clear_refs`), the side runs once more, and the peak since is printed, in
bytes: parameters, caches, temporaries, and the libraries themselves.
"""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SIDES = ("ours", "other")


def measured(suite: str, row: str, side: str, options: Mapping[str, Any]) -> int | None:
    """The peak in bytes, measured in a new process; None where the system does not tell or the side is missing."""
    command = [sys.executable, "-m", __name__, suite, row, side, json.dumps(options)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed:\n{found.stderr[-2000:]}")
    return json.loads(found.stdout.splitlines()[-1])


def shown(peak: int | None) -> str:
    """For a table.

    >>> shown(3 * 2**29), shown(None)
    (', 1.50 GiB', '')
    """
    return "" if peak is None else f", {peak / 2**30:.2f} GiB"


def main(arguments: list[str]) -> None:
    """Measure in this process, and print."""
    from .suites import SUITES

    suite, row, side, options = arguments
    (case,) = (case for case in SUITES[suite](**json.loads(options)) if case.name == row)
    chosen = getattr(case, side)
    if chosen.missing() or not Path("/proc/self/clear_refs").exists():
        print("null")
        return
    run = chosen.build(case.shape)
    run()
    run()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    run()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (kilobytes,) = re.findall(r"VmHWM:\s*(\d+) kB", status)
    print(int(kilobytes) * 1024)


if __name__ == "__main__":
    main(sys.argv[1:])

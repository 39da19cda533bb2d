"""Which rows of a table are tested in every run, and which only with `--everything`."""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest


def rows(table: Iterable[Any], always: Collection[str], name: Callable[[Any], str] = str) -> list[Any]:
    """Parameters of a test, one for each row; those not named in `always` are marked `exhaustive`.

    Args:
        table: the rows.
        always: names of the rows that are tested in every run: one of each kind.
        name: of a row.
    """
    table = list(table)
    missing = set(always) - {name(row) for row in table}
    assert not missing, f"no such rows: {missing}"
    wide = pytest.mark.exhaustive
    return [
        pytest.param(row, id=name(row).replace(" ", "-"), marks=() if name(row) in always else wide) for row in table
    ]

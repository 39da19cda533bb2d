"""Tables as text, as the reprs of recordings, maps and heads print them."""

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table whose cells are padded to the width of their column, two spaces apart.

    >>> columns([("layer", "heads"), ("0", "12")])
    ['layer  heads', '0      12']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]

"""Types of flags: numbers that are checked before anything is downloaded or trained."""

import argparse
import math
from collections.abc import Callable


def positive(text: str) -> int:
    """A flag's number, at least 1.

    Raises:
        argparse.ArgumentTypeError: it is not.

    >>> positive("3")
    3
    """
    return multiple(1)(text)


def multiple(of: int) -> Callable[[str], int]:
    """The type of a flag whose number is a positive multiple of another.

    >>> multiple(4)("7")
    Traceback (most recent call last):
    ...
    argparse.ArgumentTypeError: must be a positive multiple of 4: 7
    """
    wanted = "an integer of at least 1" if of == 1 else f"a positive multiple of {of}"

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < 1 or int(text) % of:
            raise argparse.ArgumentTypeError(f"must be {wanted}: {text}")
        return int(text)

    return number


def several(text: str) -> int:
    """A flag's number, at least 2.

    Raises:
        argparse.ArgumentTypeError: it is not.

    >>> several("1")
    Traceback (most recent call last):
    ...
    argparse.ArgumentTypeError: must be an integer of at least 2: 1
    """
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 2: {text}")
    return int(text)


def at_least(least: float, most: float = math.inf) -> Callable[[str], float]:
    """The type of a flag whose number is finite and within bounds.

    >>> at_least(0, 1)("nan")
    Traceback (most recent call last):
    ...
    argparse.ArgumentTypeError: must be a number of at least 0 and at most 1: nan
    """
    wanted = f"a number of at least {least}" + (f" and at most {most}" if most < math.inf else "")

    def number(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = math.nan
        if not (least <= found <= most and math.isfinite(found)):
            raise argparse.ArgumentTypeError(f"must be {wanted}: {text}")
        return found

    return number

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


def multiple(of: int, least: int = 1) -> Callable[[str], int]:
    """The type of a flag whose number is a positive multiple of another; a multiple of 1 may have to be larger.

    >>> multiple(4)("7")
    Traceback (most recent call last):
    ...
    argparse.ArgumentTypeError: must be a positive multiple of 4: 7
    """
    wanted = f"an integer of at least {least}" if of == 1 else f"a positive multiple of {of}"

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least or int(text) % of:
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
    return multiple(1, least=2)(text)


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

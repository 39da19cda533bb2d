"""A table of calls, each with its counterpart in the oracle.

A row says which arrays its pieces hold, how the call is made from them (`pieces`) and what it means (`truth`). What a
row buys is in test_cases.py.
"""

import jattn

from .calls import CALLS
from .case import Case
from .masks import MASKS
from .normalizers import NORMALIZERS
from .patterns import PATTERNS
from .scores import SCORES, SIMILARITIES

__all__ = ["CASES", "TILES", "Case"]

CASES = CALLS + MASKS + PATTERNS + SIMILARITIES + SCORES + NORMALIZERS
TILES = {case.name: jattn.implementations.Tiled(*(size or None for size in case.tile)) for case in CASES}

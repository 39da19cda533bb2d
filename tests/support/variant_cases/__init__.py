"""One table: a row is a variant that is a function of its own, with its definition.

What a row buys is in variants/test_cases.py.
"""

from .low_rank import LOW_RANK
from .memory import MEMORY
from .row import Row, is_float, pullback, truth
from .sparse import SPARSE
from .windows import WINDOWS

__all__ = ["ROWS", "Row", "is_float", "pullback", "truth"]

ROWS = WINDOWS + SPARSE + LOW_RANK + MEMORY

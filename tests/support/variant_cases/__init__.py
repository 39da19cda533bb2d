"""A table of variants that are functions, each with its definition.

What a row buys is in variants/test_cases.py.
"""

from .heads import HEADS
from .low_rank import LOW_RANK
from .memory import MEMORY
from .pooling import POOLING
from .row import Row, is_float, pullback, truth
from .selection import SELECTION
from .seq2seq import SEQ2SEQ
from .sparse import SPARSE

__all__ = ["ROWS", "Row", "is_float", "pullback", "truth"]

ROWS = SEQ2SEQ + POOLING + SELECTION + HEADS + SPARSE + LOW_RANK + MEMORY

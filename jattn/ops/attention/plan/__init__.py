"""The tile plan: which tiles of the score matrix a mask leaves, found by evaluating its jaxpr with intervals.

`intervals` asks what a mask allows on whole tiles. It evaluates the mask's jaxpr with one rule per primitive
(`primitives`, `bits`, `curves`, `axes`, `control`, `calls`) on the arithmetic of intervals (`bounds`). `points` decides
whether a value is kept per position or per tile, and computes what is known exactly; `refine` looks at doubtful tiles
again in smaller boxes, `plan` holds the result, and `doubt` explains what kept a tile partial.
"""

from .doubt import doubt
from .picture import picture, picture_of_mask, size_of_tiles
from .plan import EMPTY, FULL, PARTIAL, Lists, Plan, make_plan

__all__ = [
    "EMPTY",
    "FULL",
    "PARTIAL",
    "Lists",
    "Plan",
    "doubt",
    "make_plan",
    "picture",
    "picture_of_mask",
    "size_of_tiles",
]

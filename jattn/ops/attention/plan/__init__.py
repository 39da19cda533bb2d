"""Which tiles of the score matrix a mask leaves, read off its jaxpr."""

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

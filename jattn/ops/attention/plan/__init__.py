"""Which tiles of the score matrix a mask leaves, read off its jaxpr."""

from .doubt import doubt
from .elementwise import mask_reads_positions, score_reads_positions
from .picture import picture, picture_of_mask
from .plan import EMPTY, FULL, PARTIAL, Lists, Plan, make_plan
from .positions import check_extent, check_lone_query_positions

__all__ = [
    "EMPTY",
    "FULL",
    "PARTIAL",
    "Lists",
    "Plan",
    "check_extent",
    "check_lone_query_positions",
    "doubt",
    "make_plan",
    "mask_reads_positions",
    "picture",
    "picture_of_mask",
    "score_reads_positions",
]

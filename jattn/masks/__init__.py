"""Masks: which (query, key) pairs may attend. Masks combine with `&`, `|` and `~`."""

from .base import Mask, as_mask, of
from .block_diffusion import BlockDiffusion
from .blocks import BlockCausal, BlockedLocal, Blocks, Chunked, Summaries
from .dense import Dense, create
from .flags import Flagged, OnHeads, split_between_heads
from .grids import Axial, Neighborhood
from .near import Near
from .order import Causal, Dilated, Prefix, Sinks, SlidingWindow, Strided
from .packing import from_attention_mask, from_cu_seqlens, from_position_ids
from .segments import Lengths, SameSegment
from .selected import Selected
from .shifted import Shifted

__all__ = [
    "Axial",
    "BlockCausal",
    "BlockDiffusion",
    "BlockedLocal",
    "Blocks",
    "Causal",
    "Chunked",
    "Dense",
    "Dilated",
    "Flagged",
    "Lengths",
    "Mask",
    "Near",
    "Neighborhood",
    "OnHeads",
    "Prefix",
    "SameSegment",
    "Selected",
    "Shifted",
    "Sinks",
    "SlidingWindow",
    "Strided",
    "Summaries",
    "as_mask",
    "create",
    "from_attention_mask",
    "from_cu_seqlens",
    "from_position_ids",
    "of",
    "split_between_heads",
]

"""Masks: which (query, key) pairs may attend. Masks combine with `&`, `|` and `~`."""

from .base import Mask, as_mask, of
from .blocks import BlockCausal, Blocks, Chunked
from .dense import Dense, create
from .grids import Axial, Neighborhood
from .order import Causal, Dilated, Prefix, Sinks, SlidingWindow, Strided
from .packing import from_attention_mask, from_cu_seqlens, from_position_ids
from .segments import Lengths, SameSegment
from .selected import Selected
from .shifted import Shifted

__all__ = [
    "Axial",
    "BlockCausal",
    "Blocks",
    "Causal",
    "Chunked",
    "Dense",
    "Dilated",
    "Lengths",
    "Mask",
    "Neighborhood",
    "Prefix",
    "SameSegment",
    "Selected",
    "Shifted",
    "Sinks",
    "SlidingWindow",
    "Strided",
    "as_mask",
    "create",
    "from_attention_mask",
    "from_cu_seqlens",
    "from_position_ids",
    "of",
]

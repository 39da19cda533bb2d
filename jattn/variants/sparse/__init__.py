"""Sparse patterns: masks that skip tiles, and calls that bring together what a pattern scatters."""

from .bigbird import bigbird_etc_mask, bigbird_mask, random_blocks
from .longformer import Longformer, global_flags, longformer_mask
from .shared_prefix import positions_in_documents, shared_prefix_attention, shared_prefix_mask
from .sparse_transformer import fixed_attention, fixed_mask, strided_attention, strided_mask
from .tree import tree_depths, tree_mask

__all__ = [
    "Longformer",
    "bigbird_etc_mask",
    "bigbird_mask",
    "fixed_attention",
    "fixed_mask",
    "global_flags",
    "longformer_mask",
    "positions_in_documents",
    "random_blocks",
    "shared_prefix_attention",
    "shared_prefix_mask",
    "strided_attention",
    "strided_mask",
    "tree_depths",
    "tree_mask",
]

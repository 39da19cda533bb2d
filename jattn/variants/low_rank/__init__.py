"""Low rank: attention to a fixed number of keys, each a mixture of many."""

from .linformer import Linformer, convolution_projection, linformer_attention, pooling_projection
from .nystromformer import Nystromformer, nystrom_attention, pseudo_inverse

__all__ = [
    "Linformer",
    "Nystromformer",
    "convolution_projection",
    "linformer_attention",
    "nystrom_attention",
    "pooling_projection",
    "pseudo_inverse",
]

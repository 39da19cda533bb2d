"""Variants: vision. Images are `[..., height, width, channels]`."""

from .augmented import AugmentedConvolution, relative_image_attention
from .cbam import CBAM
from .clip import FIRST_LOG_SCALE, LARGEST_SCALE, AttentionPool, contrastive_loss, quick_gelu
from .co_attention import CoAttention
from .nonlocal_block import NonLocal
from .squeeze_excite import SqueezeExcite

__all__ = [
    "CBAM",
    "FIRST_LOG_SCALE",
    "LARGEST_SCALE",
    "AttentionPool",
    "AugmentedConvolution",
    "CoAttention",
    "NonLocal",
    "SqueezeExcite",
    "contrastive_loss",
    "quick_gelu",
    "relative_image_attention",
]

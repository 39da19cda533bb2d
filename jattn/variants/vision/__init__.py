"""Attention over images, and between text and images. Images are `[..., height, width, channels]`."""

from .augmented import AugmentedConvolution, relative_image_attention
from .captioning import CaptioningAttention, Glimpse, doubly_stochastic_loss, moving_baseline, reinforce_loss
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
    "CaptioningAttention",
    "CoAttention",
    "Glimpse",
    "NonLocal",
    "SqueezeExcite",
    "contrastive_loss",
    "doubly_stochastic_loss",
    "moving_baseline",
    "quick_gelu",
    "reinforce_loss",
    "relative_image_attention",
]

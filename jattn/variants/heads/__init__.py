"""Heads that exchange scores or weights, are subtracted from each other, or share one latent."""

from .differential import Differential, differential
from .latent import LatentAttention
from .multi_token import MultiToken, multi_token
from .talking_heads import TalkingHeads, talking_heads

__all__ = [
    "Differential",
    "LatentAttention",
    "MultiToken",
    "TalkingHeads",
    "differential",
    "multi_token",
    "talking_heads",
]

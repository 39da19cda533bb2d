"""Heads that exchange scores or weights, and heads that are subtracted from each other."""

from .differential import Differential, differential
from .multi_token import MultiToken, multi_token
from .talking_heads import TalkingHeads, talking_heads

__all__ = [
    "Differential",
    "MultiToken",
    "TalkingHeads",
    "differential",
    "multi_token",
    "talking_heads",
]

"""Scores and windows that are more than a choice of pieces."""

from .differential import Differential, differential
from .hard import Drawn, hard, reinforce
from .local_m import local_m
from .local_p import GaussianWindow, LuongLocal, Near, local_p
from .location import Location
from .luong import LuongGlobal
from .multi_token import MultiToken, multi_token
from .pooling import AttentionPooling
from .talking_heads import TalkingHeads, talking_heads
from .top_k import top_k

__all__ = [
    "AttentionPooling",
    "Differential",
    "Drawn",
    "GaussianWindow",
    "Location",
    "LuongGlobal",
    "LuongLocal",
    "MultiToken",
    "Near",
    "TalkingHeads",
    "differential",
    "hard",
    "local_m",
    "local_p",
    "multi_token",
    "reinforce",
    "talking_heads",
    "top_k",
]

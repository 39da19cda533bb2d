"""Attention with learned gates: forget gates for keys, and outputs modulated by a context."""

from .forgetting import ForgettingAttention
from .modulation import Modulation

__all__ = [
    "ForgettingAttention",
    "Modulation",
]

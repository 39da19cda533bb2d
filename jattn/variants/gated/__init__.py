"""Attention with learned gates: keys that fade, and outputs modulated by a context."""

from .forgetting import ForgettingAttention
from .modulation import Modulation

__all__ = [
    "ForgettingAttention",
    "Modulation",
]

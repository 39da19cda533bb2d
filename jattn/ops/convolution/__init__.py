"""Causal convolutions of sequences, one filter a channel: as long as the sequence, and of a few taps."""

from .long import long_convolution
from .short import short_convolution

__all__ = ["long_convolution", "short_convolution"]

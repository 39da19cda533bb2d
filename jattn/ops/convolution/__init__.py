"""Causal convolutions along a sequence, with one filter per channel: as long as the sequence, or a few taps."""

from .long import long_convolution
from .short import short_convolution

__all__ = ["long_convolution", "short_convolution"]

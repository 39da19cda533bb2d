"""The implementations of attention. `registry` says what is asked of one, and in which order the default tries them."""

from ...dispatch import Implementation
from .reference import Reference
from .registry import ATTENTION
from .tiled import Tiled

__all__ = ["ATTENTION", "Implementation", "Reference", "Tiled"]

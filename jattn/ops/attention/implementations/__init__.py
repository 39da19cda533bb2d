"""The implementations of attention. `registry` has their contract, and the order in which the default tries them."""

from ....foundation.deprecation import renamed as _renamed
from ...dispatch import Implementation
from .reference import Reference
from .registry import ATTENTION
from .tiled import Tiled

__all__ = ["ATTENTION", "Implementation", "Reference", "Tiled"]

__getattr__ = _renamed(__name__, {"Chunked": "jattn.implementations.Tiled"}, removed_in="0.3")

"""The ways to compute a call, in the order in which the default tries them."""

from ..contract import Implementation
from .reference import Reference
from .tiled import Tiled

__all__ = ["DEFAULTS", "Implementation", "Reference", "Tiled"]

DEFAULTS: tuple[Implementation, ...] = (Tiled(), Reference())
"""The first that does not refuse a call runs it."""

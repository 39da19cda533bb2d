"""The ways to compute a call, in the order in which the default tries them."""

from ..core.contract import Implementation
from .chunked import Chunked
from .reference import Reference

__all__ = ["DEFAULTS", "Chunked", "Implementation", "Reference"]

DEFAULTS: tuple[Implementation, ...] = (Chunked(), Reference())
"""The first that does not refuse a call runs it."""

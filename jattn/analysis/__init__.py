"""Looking inside attention: maps from any source, and what their heads do."""

from .maps import Layer, Maps
from .reading import read

__all__ = ["Layer", "Maps", "read"]

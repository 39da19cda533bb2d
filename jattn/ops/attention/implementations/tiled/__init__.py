"""Tiled attention in plain XLA: linear memory, any device, time proportional to the tiles of the plan."""

from .implementation import Tiled

__all__ = ["Tiled"]

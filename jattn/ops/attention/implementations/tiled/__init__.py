"""XLA-only attention in tiles: linear in memory, on any device, at a cost that follows the plan."""

from .implementation import Tiled

__all__ = ["Tiled"]

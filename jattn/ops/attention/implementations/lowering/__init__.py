"""Makes the functions of pieces fit for a kernel: what its compiler lacks is computed outside, or refused by name."""

from .limits import MOSAIC, Limits, mosaic
from .lowered import Lowered, lower, offset_of
from .tile import Tile

__all__ = ["MOSAIC", "Limits", "Lowered", "Tile", "lower", "mosaic", "offset_of"]

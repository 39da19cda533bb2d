"""Figures of attention for papers, drawn by Matplotlib: heads, a map, a plan, offsets, an embedding, an alignment.

Each function draws into `ax` (or `figure`) if it is given, and otherwise into a figure of its own, without pyplot. It
returns the axes or the figure: `ax.figure.savefig("heads.svg")`, or `.png`, `.pdf`. Matplotlib is the extra `figures`.
"""

from .aligned import alignment
from .grid import heads_grid
from .patterns import head_embedding, offset_histograms
from .single import head_map
from .visited import tile_plan

__all__ = ["alignment", "head_embedding", "head_map", "heads_grid", "offset_histograms", "tile_plan"]

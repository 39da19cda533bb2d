"""The tiles that attention visits under a mask."""

from typing import Any

import numpy as np

from ...foundation.arguments import check_positive
from ...foundation.arrays import describe
from ...masks.base import as_mask
from ...masks.placement import placed
from ...ops.attention.explain import Explanation
from ...ops.attention.plan import Plan, make_plan
from ..tiles import plan_of
from .canvas import SOFT, TILES, axes, matplotlib


def tile_plan(
    plan: Any,
    q_len: int | None = None,
    kv_len: int | None = None,
    *,
    tile: int | None = None,
    ax: Any = None,
    title: str | None = None,
    legend: bool = True,
) -> Any:
    """The tiles that attention visits: skipped, masked in part, or full.

    Args:
        plan: what `jattn.explain` returns for a call; or a mask, or a function of positions, with `q_len`.
        q_len, kv_len: for a mask, the numbers of queries and keys; by default as many keys as queries.
        tile: for a mask, the queries and keys of a tile; by default a 32nd of the longer side.
        ax: axes to draw into; by default those of a new figure.
        title: by default how many tiles are visited.
        legend: whether to say what the colors are.

    Returns:
        The axes.

    Raises:
        ValueError: the plan is decided at run time; a mask without `q_len`.
        ImportError: Matplotlib is not installed.

    >>> import jattn
    >>> from jattn.visualization import figures
    >>> figures.tile_plan(jattn.masks.SlidingWindow(100, 0), 1024, tile=64).get_title()
    '45 of 256 tiles visited (17.6%)'
    """
    library = matplotlib()
    if isinstance(plan, Explanation | Plan):
        found = plan_of(plan)
        q_len, kv_len = found.q_len, found.kv_len
    else:
        if q_len is None:
            raise ValueError(f"`q_len` must be given with a mask, such as 1024; got a mask, {describe(plan)}, alone.")
        kv_len = q_len if kv_len is None else kv_len
        check_positive(q_len=q_len, kv_len=kv_len)
        tile = max(1, max(q_len, kv_len) // 32) if tile is None else tile
        check_positive(tile=tile)
        aligned, queries, keys = placed(as_mask(plan), q_len, kv_len, None, None)
        found = make_plan(aligned, queries, keys, tile, tile)
    q_tile, k_tile, states = found.q_tile, found.k_tile, found.states
    grid = states.reshape(-1, *states.shape[-2:])[0]
    ax = axes(ax, (4.6, 4.6))
    colors = library.colors.ListedColormap(TILES)
    extent = (0, grid.shape[1] * k_tile, grid.shape[0] * q_tile, 0)
    ax.imshow(grid, cmap=colors, vmin=0, vmax=2, extent=extent, interpolation="nearest", rasterized=True)
    ax.set_xlim(0, kv_len)
    ax.set_ylim(q_len, 0)
    if max(grid.shape) <= 64:
        for edge in range(0, extent[1] + 1, k_tile):
            ax.axvline(edge, color="white", linewidth=0.6)
        for edge in range(0, extent[2] + 1, q_tile):
            ax.axhline(edge, color="white", linewidth=0.6)
    visited = int((grid > 0).sum())
    said = f"{visited:,} of {grid.size:,} tiles visited ({visited / max(grid.size, 1):.1%})"
    ax.set_title(said if title is None else title, fontsize=10)
    ax.set_xlabel(f"keys, tiles of {k_tile}", color=SOFT)
    ax.set_ylabel(f"queries, tiles of {q_tile}", color=SOFT)
    ax.tick_params(length=0, colors=SOFT, labelsize=7)
    ax.spines[:].set_visible(False)
    if legend:
        names = ("skipped", "masked in part", "full")
        patches = [library.patches.Patch(color=color, label=name) for color, name in zip(TILES, names, strict=True)]
        kinds = np.unique(grid)
        ax.legend(
            handles=[patches[kind] for kind in kinds],
            loc="upper center",
            bbox_to_anchor=(0.5, -0.12),
            ncols=3,
            frameon=False,
            fontsize=8,
        )
    return ax

"""All heads as small maps."""

from typing import Any

import numpy as np

from ...analysis import Heads, read
from ...foundation.arrays import describe
from .canvas import INK, SOFT, axes, draw_weights, matplotlib

MOST = 1024


def heads_grid(source: Any, *, labels: Heads | None = None, figure: Any = None, ax: Any = None, **choices: Any) -> Any:
    """All heads as small maps, a row for each layer, a column for each head.

    Args:
        source: any that `jattn.analysis.read` takes.
        labels: what `jattn.analysis.describe` returns, to write above the maps.
        figure: of Matplotlib; by default a new one. A `SubFigure` serves too.
        ax: axes to draw the maps within, in place of a figure.
        **choices: those of `jattn.analysis.read`, such as `layers`, `heads` and `examples`; of several examples, the
            first is drawn.

    Returns:
        The figure, or `ax`.

    Raises:
        ValueError: as `jattn.analysis.read`; there are more than 1024 maps; both `figure` and `ax` are given.
        ImportError: Matplotlib is not installed.

    >>> import numpy as np
    >>> from jattn.visualization import figures
    >>> figure = figures.heads_grid([np.full((4, 3, 3), 1 / 3)] * 2)
    >>> len(figure.axes)
    8
    """
    library = matplotlib()
    maps = read(source, **choices)
    columns = max(len(layer.heads) for layer in maps)
    count = sum(len(layer.heads) for layer in maps)
    if count > MOST:
        raise ValueError(f"`source` has {count} maps, more than {MOST}; choose with `layers=` or `heads=`.")
    if labels is not None and not isinstance(labels, Heads):
        raise ValueError(f"`labels` must be what `jattn.analysis.describe` returns; got {describe(labels)}.")
    there = {(one.layer, one.head) for one in labels or ()}
    for layer in maps:
        for head in layer.heads if labels is not None else ():
            if (layer.name, head) not in there:
                raise ValueError(f"`labels` must be of all these heads, and lacks head {head} of {layer.name!r}.")
    if figure is not None and not hasattr(figure, "subplots"):
        raise ValueError(f"`figure` must be a figure of Matplotlib; got {describe(figure)}.")
    if figure is not None and ax is not None:
        raise ValueError("`figure` and `ax` exclude each other; got both.")
    side = 0.9 if count > 24 else 1.5
    size = (side * columns + 0.5, (side + (0.15 if labels is not None else 0)) * len(maps) + 0.4)
    if ax is None:
        figure = library.figure.Figure(figsize=size, layout="constrained") if figure is None else figure
        panels = figure.subplots(len(maps), columns, squeeze=False)
    else:
        panels = _within(axes(ax, size), len(maps), columns)
    for row, layer in enumerate(maps):
        weights, mask = layer.weights[0], layer.may_attend[0]
        for place in range(columns):
            panel = panels[row, place]
            if place >= len(layer.heads):
                panel.set_visible(False)
                continue
            draw_weights(panel, weights[place], mask[min(place, len(mask) - 1)])
            panel.set(xticks=[], yticks=[])
            number = layer.heads[place]
            if labels is not None:
                found = labels.of(layer.name, number)
                panel.set_title(found.label if found.label != "-" else "", fontsize=6.5, color=SOFT, pad=2)
            elif row == 0:
                panel.set_title(str(number), fontsize=8, color=INK, pad=3)
            if place == 0:
                panel.set_ylabel(f"layer {row}", fontsize=8, color=INK)
    return figure if ax is None else ax


def _within(ax: Any, rows: int, columns: int) -> np.ndarray:
    """Axes in rows and columns that fill other axes."""
    ax.set_axis_off()
    made = np.empty((rows, columns), object)
    for row in range(rows):
        for place in range(columns):
            made[row, place] = ax.inset_axes((place / columns, 1 - (row + 1) / rows, 0.92 / columns, 0.86 / rows))
    return made

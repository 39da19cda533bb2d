"""All heads as small maps."""

from typing import Any

from ...analysis import Heads, read
from ...foundation.arrays import describe
from .canvas import INK, SOFT, draw_weights, matplotlib

MOST = 1024


def heads_grid(source: Any, *, labels: Heads | None = None, figure: Any = None, **choices: Any) -> Any:
    """All heads as small maps, a row for each layer, a column for each head.

    Args:
        source: any that `jattn.analysis.read` takes.
        labels: what `jattn.analysis.describe` returns, to write above the maps.
        figure: of Matplotlib; by default a new one. A `SubFigure` serves too.
        **choices: those of `jattn.analysis.read`, such as `layers`, `heads` and `examples`; of several examples, the
            first is drawn.

    Returns:
        The figure.

    Raises:
        ValueError: as `jattn.analysis.read`; there are more than 1024 maps.
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
    side = 0.9 if count > 24 else 1.5
    if figure is None:
        size = (side * columns + 0.5, (side + (0.15 if labels is not None else 0)) * len(maps) + 0.4)
        figure = library.figure.Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(maps), columns, squeeze=False)
    for row, layer in enumerate(maps):
        weights, mask = layer.weights[0], layer.may_attend[0]
        for place in range(columns):
            ax = panels[row, place]
            if place >= len(layer.heads):
                ax.set_visible(False)
                continue
            draw_weights(ax, weights[place], mask[min(place, len(mask) - 1)])
            ax.set(xticks=[], yticks=[])
            number = layer.heads[place]
            if labels is not None:
                found = labels.of(layer.name, number)
                ax.set_title(found.label if found.label != "-" else "", fontsize=6.5, color=SOFT, pad=2)
            elif row == 0:
                ax.set_title(str(number), fontsize=8, color=INK, pad=3)
            if place == 0:
                ax.set_ylabel(f"layer {row}", fontsize=8, color=INK)
    return figure

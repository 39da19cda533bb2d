"""What heads do, side by side: how far back they look, and which are alike."""

from typing import Any

import numpy as np

from ...analysis import Heads, distances, embedding, offset_histogram, read
from ...foundation.arguments import check_positive
from ...foundation.arrays import describe
from .canvas import HEADS, LINE, SOFT, axes

STYLES = ("-", "--", ":")
MARKS = ("o", "s", "^", "D", "v", "P")


def offset_histograms(
    source: Any, *, layer: int | str = 0, ax: Any = None, reach: int = 16, legend: bool = True, **choices: Any
) -> Any:
    """The share of each head's weights at each offset from query to key, for the heads of a layer.

    Args:
        source: any that `jattn.analysis.read` takes.
        layer: by its number or name.
        ax: axes to draw into; by default those of a new figure.
        reach: the largest distance that is drawn.
        legend: whether to say which head has which color.
        **choices: those of `jattn.analysis.read`, such as `heads`.

    Returns:
        The axes.

    Raises:
        ValueError: as in `jattn.analysis.read`; the layer does not attend to its own tokens.
        ImportError: Matplotlib is not installed.

    >>> import numpy as np
    >>> from jattn.visualization import figures
    >>> len(figures.offset_histograms([np.full((4, 3, 3), 1 / 3)]).lines)
    5
    """
    maps = read(source, layers=layer, **choices)
    chosen = maps[0]
    if chosen.positions is None:
        raise ValueError(
            f"`layer` must attend to its own tokens, whose offsets are drawn; {chosen.name!r} has {chosen.q_len} "
            f"queries and {chosen.shape[3]} keys of another sequence."
        )
    check_positive(reach=reach)
    offsets, shares = offset_histogram(chosen.weights, chosen.counted, queries=chosen.positions)
    shares = np.asarray(shares)
    ax = axes(ax, (6, 3.4))
    near = np.abs(offsets) <= reach
    ax.axvline(0, color=LINE, linewidth=1)
    for place, head in enumerate(chosen.heads):
        style = {"color": HEADS[place % 8], "linestyle": STYLES[place // 8 % 3], "linewidth": 1.6}
        ax.plot(offsets[near], shares[place][near], label=str(head), **style)
    ax.set_xlabel("offset of the key from the query", color=SOFT)
    ax.set_ylabel("share of the weight", color=SOFT)
    ax.set_ylim(0, None)
    ax.set_title(f"layer {layer}", fontsize=10)
    _plain(ax)
    if legend:
        ax.legend(title="head", frameon=False, fontsize=7, title_fontsize=8, ncols=2)
    return ax


def head_embedding(source: Any, *, labels: Heads | None = None, ax: Any = None, **choices: Any) -> Any:
    """Heads as points, near to each other if they attend alike: their Jensen-Shannon distances in two dimensions.

    Args:
        source: any that `jattn.analysis.read` takes; its layers have the same numbers of queries and keys.
        labels: what `jattn.analysis.describe` returns, which colors the points; by default the layer does.
        ax: axes to draw into; by default those of a new figure.
        **choices: those of `jattn.analysis.read`.

    Returns:
        The axes.

    Raises:
        ValueError: as in `jattn.analysis.distances`.
        ImportError: Matplotlib is not installed.
    """
    if labels is not None and not isinstance(labels, Heads):
        raise ValueError(f"`labels` must be what `jattn.analysis.describe` returns; got {describe(labels)}.")
    maps = read(source, **choices)
    points = embedding(distances(maps))
    names = [(number, layer.name, head) for number, layer in enumerate(maps) for head in layer.heads]
    kinds = [str(number) if labels is None else labels.of(name, head).label for number, name, head in names]
    ax = axes(ax, (5.6, 5))
    for place, kind in enumerate(dict.fromkeys(kinds)):
        mine = np.array([one == kind for one in kinds])
        color = "#c4c8d0" if kind == "-" else HEADS[place % 8]
        label = "none" if kind == "-" else kind
        mark = MARKS[place // 8 % len(MARKS)]
        ax.scatter(*points[mine].T, s=34, color=color, marker=mark, label=label, edgecolor="white", linewidth=0.6)
    if len(names) <= 160:
        for (number, _, head), (x, y) in zip(names, points, strict=True):
            ax.annotate(f"{number}.{head}", (x, y), (3, 3), textcoords="offset points", fontsize=5.5, color=SOFT)
    ax.legend(title="layer" if labels is None else None, frameon=False, fontsize=7, title_fontsize=8)
    ax.set(xticks=[], yticks=[])
    ax.set_aspect("equal", "datalim")
    ax.set_title("heads, near where they attend alike", fontsize=10)
    _plain(ax)
    return ax


def _plain(ax: Any) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(LINE)
    ax.tick_params(colors=SOFT, labelsize=8)

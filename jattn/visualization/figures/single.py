"""One map with its tokens."""

from typing import Any

from ...analysis import read
from ...foundation.arrays import describe
from .canvas import SOFT, axes, draw_weights, token_ticks


def head_map(
    source: Any,
    *,
    layer: int | str = 0,
    head: int = 0,
    example: int = 0,
    ax: Any = None,
    title: str | None = None,
    colorbar: bool = True,
    **choices: Any,
) -> Any:
    """One head's map, with tokens along both axes if there are at most 64. Masked pairs are gray.

    Args:
        source: any that `jattn.analysis.read` takes.
        layer, head, example: which map; a layer by its number or name.
        ax: axes to draw into; by default those of a new figure.
        title: by default the layer and the head.
        colorbar: whether to draw the scale.
        **choices: those of `jattn.analysis.read`, such as `tokens` and `mask`.

    Returns:
        The axes.

    Raises:
        ValueError: as `jattn.analysis.read`.
        ImportError: Matplotlib is not installed.

    >>> import numpy as np
    >>> from jattn.visualization import figures
    >>> ax = figures.head_map([np.full((4, 3, 3), 1 / 3)], head=2, tokens=["a", "b", "c"])
    >>> ax.get_title()
    'layer 0, head 2'
    """
    for name, one in {"layer": layer, "head": head, "example": example}.items():
        if isinstance(one, bool) or not isinstance(one, int | str if name == "layer" else int):
            raise ValueError(
                f"`{name}` must be one number{' or name' if name == 'layer' else ''}; got {describe(one)}."
            )
    maps = read(source, layers=layer, heads=head, examples=example, **choices)
    chosen = maps[0]
    _, _, queries, keys = chosen.shape
    size = min(9.0, max(3.2, 1.6 + 0.24 * max(queries, keys)))
    ax = axes(ax, (size + 0.6, size))
    image = draw_weights(ax, chosen.weights[0, 0], chosen.may_attend[0, 0])
    small = {"fontsize": max(5.5, min(9, 380 / max(queries, keys)))}
    ax.xaxis.tick_top()
    token_ticks(ax.xaxis, chosen.key_tokens[0] if chosen.key_tokens else None, keys, rotation=90, **small)
    token_ticks(ax.yaxis, chosen.query_tokens[0] if chosen.query_tokens else None, queries, **small)
    ax.set_title(f"layer {layer}, head {head}" if title is None else title, fontsize=10)
    ax.set_xlabel("keys", color=SOFT)
    ax.set_ylabel("queries", color=SOFT)
    if colorbar:
        bar = ax.figure.colorbar(image, ax=ax, shrink=0.6, pad=0.02)
        bar.set_ticks([tick for tick in (0, 0.01, 0.1, 0.25, 0.5, 1) if tick <= image.norm.vmax])
        bar.ax.tick_params(labelsize=7, colors=SOFT)
        bar.outline.set_edgecolor("none")  # type: ignore[operator]
    return ax

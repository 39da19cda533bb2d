"""Axes, colors and labels that all figures share."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...foundation.arrays import describe

INK, SOFT, LINE, MASKED, ACCENT = "#171a21", "#5b6270", "#dfe2e8", "#d6d8de", "#d6006c"
HEADS = ("#e69f00", "#56b4e9", "#009e73", "#d55e00", "#cc79a7", "#0072b2", "#b7a800", "#8c8c8c")
"""Okabe and Ito's colors, which people with any color vision tell apart; as on the page."""
WEIGHTS = ("#f7fbff", "#d6e6f4", "#abcfe6", "#6aaed6", "#3787c0", "#105ba4", "#08306b")
TILES = ("#eceef2", "#f0a35e", "#2b6cb0")
MOST_TOKENS = 64  # that are written along an axis


def matplotlib() -> Any:
    """Matplotlib with the parts that are used here.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import matplotlib
        import matplotlib.axes
        import matplotlib.colors
        import matplotlib.figure
        import matplotlib.patches
    except ImportError as error:
        raise ImportError(
            "figures are drawn by Matplotlib, which is not installed: `pip install 'jattn[figures]'`, or `pip install "
            "matplotlib`. `jattn.visualization.view` needs nothing but a browser."
        ) from error
    return matplotlib


def axes(ax: Any, size: tuple[float, float]) -> Any:
    """The axes that were given, or those of a new figure.

    Args:
        ax: axes of Matplotlib, or None.
        size: of a new figure, in inches.

    Raises:
        ImportError: Matplotlib is not installed.
        ValueError: `ax` is something else.
    """
    library = matplotlib()
    if ax is None:
        return library.figure.Figure(figsize=size, layout="constrained").add_subplot()
    if not isinstance(ax, library.axes.Axes):
        raise ValueError(f"`ax` must be axes of Matplotlib, as `plt.subplots()` gives them; got {describe(ax)}.")
    return ax


def draw_weights(ax: Any, weights: np.ndarray, mask: np.ndarray | None) -> Any:
    """A map as an image, colored by the square roots of its weights; masked pairs are gray, NaN is orange.

    Raises:
        ValueError: weights are negative.
    """
    library = matplotlib()
    if (weights < 0).any():
        raise ValueError("`source` must be weights of at least 0; of signed numbers draw a part: `maximum(array, 0)`.")
    colors = library.colors.LinearSegmentedColormap.from_list("weights", WEIGHTS).with_extremes(bad="#d55e00")
    largest = max(1.0, float(np.nanmax(np.where(np.isfinite(weights), weights, 0), initial=0)))
    norm = library.colors.PowerNorm(0.5, 0, largest)
    image = ax.imshow(weights, cmap=colors, norm=norm, aspect="equal", interpolation="nearest", rasterized=True)
    if mask is not None and not mask.all():
        gray = library.colors.ListedColormap([MASKED])
        hidden = np.ma.masked_array(np.zeros(mask.shape), mask | (np.nan_to_num(weights) != 0))
        ax.imshow(hidden, cmap=gray, aspect="equal", interpolation="nearest", rasterized=True)
    ax.tick_params(length=0, colors=SOFT)
    ax.spines[:].set_color(LINE)
    return image


def readable(token: str, most: int = 16) -> str:
    """A token for an axis: marks of a space as such, no line end, no markup of formulas.

    >>> readable("Ġcat"), readable("a\\nb"), readable("$x$")
    ('␣cat', 'a↵b', '\\\\$x\\\\$')
    """
    text = token.replace("Ġ", "␣").replace("▁", "␣").replace("Ċ", "↵").replace("\n", "↵")
    text = "".join(sign if sign.isprintable() else "·" for sign in text) or "∅"
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return text.replace("\\", "\\\\").replace("$", "\\$")


def token_ticks(axis: Any, tokens: Sequence[str] | None, count: int, **style: Any) -> None:
    """Write the tokens along an axis, if they are few enough to be read.

    Raises:
        ValueError: there are more or fewer than places.
    """
    if tokens is not None and len(tokens) != count:
        raise ValueError(f"`tokens` must be {count} texts, one for each query or key of the axis; got {len(tokens)}.")
    if tokens is None or count > MOST_TOKENS:
        return
    axis.set_ticks(range(count), [readable(token) for token in tokens], **style)

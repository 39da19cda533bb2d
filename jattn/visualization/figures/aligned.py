"""An alignment of two sequences over the weights that it comes from."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...foundation.arrays import describe
from .canvas import ACCENT, SOFT, axes, draw_weights, token_ticks


def alignment(
    weights: Any,
    path: Any = None,
    *,
    tokens: Sequence[str] | None = None,
    key_tokens: Sequence[str] | None = None,
    gold: Any = None,
    seconds: float | None = None,
    ax: Any = None,
    title: str = "",
) -> Any:
    """Which key each query is aligned with, over the weights.

    Args:
        weights: `[queries, keys]`, or `[heads, queries, keys]`, whose mean is drawn; such as cross-attention.
        path: what is aligned; by default each query with the key of its largest weight. Drawn as dots are pairs of a
            query and a key, `[pairs, 2]` or a set as `analysis.align` returns, and one key for each query, `[queries]`.
            Drawn as a line are the rows and columns that `analysis.time_warp` returns.
        tokens, key_tokens: to write along the axes.
        gold: pairs `[pairs, 2]` that are right, drawn as rings.
        seconds: how long a key lasts, as in speech: the axis is in seconds.
        ax: axes to draw into; by default those of a new figure.
        title: of the axes.

    Returns:
        The axes.

    Raises:
        ValueError: the weights are no map; a pair is outside of it.
        ImportError: Matplotlib is not installed.

    >>> import numpy as np
    >>> from jattn.visualization import figures
    >>> ax = figures.alignment(np.eye(3), tokens=["a", "b", "c"])
    >>> ax.lines[0].get_xdata().tolist(), ax.lines[0].get_linestyle()
    ([0.0, 1.0, 2.0], 'None')
    """
    array = np.asarray(weights, np.float32)
    array = array.mean(0) if array.ndim == 3 else array
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(
            f"`weights` must have shape [queries, keys] or [heads, queries, keys]; got {describe(weights)}."
        )
    queries, keys = array.shape
    pairs = _pairs("path", np.nan_to_num(array).argmax(-1) if path is None else path, array.shape)
    rings = None if gold is None else _pairs("gold", gold, array.shape)
    wide = min(9.0, max(4.0, 1.5 + 0.22 * keys))
    ax = axes(ax, (wide, min(8.0, max(2.6, 1.2 + 0.22 * queries))))
    draw_weights(ax, array, None)
    ax.set_aspect("auto")
    style = {"linewidth": 2} if _is_warp(path) else {"linestyle": "None", "marker": "o", "markeredgecolor": "white"}
    ax.plot(pairs[:, 1], pairs[:, 0], color=ACCENT, markersize=6, **style)
    if rings is not None:
        ax.plot(
            rings[:, 1],
            rings[:, 0],
            "o",
            markersize=11,
            markerfacecolor="none",
            markeredgecolor="#009e73",
            markeredgewidth=1.8,
        )
    token_ticks(ax.yaxis, tokens, queries, fontsize=8)
    token_ticks(ax.xaxis, key_tokens, keys, rotation=90, fontsize=8)
    if seconds is not None:
        step = max(1, round(keys / 8))
        ax.set_xticks(range(0, keys, step), [f"{place * seconds:.1f}" for place in range(0, keys, step)])
    ax.set_xlabel("keys" if seconds is None else "seconds", color=SOFT)
    ax.set_ylabel("queries", color=SOFT)
    ax.set_title(title, fontsize=10)
    return ax


def _is_warp(given: Any) -> bool:
    """Whether it is what `time_warp` returns: rows and columns."""
    arrays = isinstance(given, tuple) and len(given) == 2 and all(isinstance(one, np.ndarray) for one in given)
    return arrays and given[0].shape == given[1].shape == (len(given[0]),)


def _pairs(name: str, given: Any, shape: tuple[int, ...]) -> np.ndarray:
    if isinstance(given, set | frozenset):
        given = np.array(sorted(given), int).reshape(-1, 2)
    given = np.stack(given, 1) if _is_warp(given) else np.asarray(given)
    if given.ndim == 1 and len(given) == shape[0]:
        given = np.stack([np.arange(len(given)), given], 1)
    right = given.ndim == 2 and given.shape[1] == 2 and np.issubdtype(given.dtype, np.integer)
    if not right or (given < 0).any() or (given >= np.array(shape)).any():
        raise ValueError(
            f"`{name}` must be pairs [pairs, 2] of a query below {shape[0]} and a key below {shape[1]}, or a key for "
            f"each query; got {describe(given)}."
        )
    return given.astype(float)

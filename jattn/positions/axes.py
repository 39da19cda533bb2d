"""Rotary embeddings with several coordinates per token: each pair of features is rotated by one of them.

Which pair is rotated by which coordinate is static, so each coordinate is one call of `rotary` on its own pairs.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..foundation.arguments import check_above, check_choice, check_flags
from ..foundation.arrays import describe, dtype_of
from ..foundation.numerics import accumulation_dtype
from .rotary import Pairs, check_features, check_pairs, rotary, scaled_frequencies
from .scaling import Scaling, rotary_frequencies


def rotary_2d(
    x: Float[jax.Array, "*batch length heads dim"],
    positions: jax.Array | np.ndarray,
    *,
    base: float = 10000.0,
    pairs: Pairs = "half",
    layout: Literal["split", "joint"] = "split",
    frequencies: jax.Array | np.ndarray | None = None,
) -> Float[jax.Array, "*batch length heads dim"]:
    """Rotary embeddings on a grid: half of the feature pairs are rotated by the row, the other half by the column.

    Dot products then depend only on the relative row and the relative column. Both axes have the frequencies
    θ_i = base^(-4i/dim), i = 0 .. dim/4 - 1.

    Args:
        x: `[..., length, heads, dim]`, a query or a key, with `dim` a multiple of 4.
        positions: `[..., length, 2]`, the row and column of each token. For a whole grid, flattened row by row:
            `numpy.indices((rows, columns)).reshape(2, -1).T`.
        base: a number above 1.
        pairs: as in `rotary`.
        layout: `"split"` rotates the first half of the features by rows and the second half by columns, each like
            `rotary` (Gemma 4; SAM 2 with `pairs="interleaved"`). `"joint"` forms pairs over all of `dim`: with
            `pairs="half"`, features i and i + dim/2 are rotated by the row if i < dim/4, otherwise by the column (the
            image encoders of Qwen2-VL, Qwen3-VL and GLM-4V; DINOv3). With interleaved pairs both layouts are the same.
        frequencies: θ itself `[2, dim / 4]`, for rows and for columns, in place of `base`. Pixtral alternates the
            frequencies of one axis between both: `rotary_frequencies(base, dim).reshape(-1, 2).T`, with
            `layout="joint"`.

    Raises:
        ValueError: `dim` is not a multiple of 4, shapes do not match, or `layout` is unknown; or as in `rotary`.

    >>> import jax, numpy as np, jattn
    >>> x = jax.random.normal(jax.random.key(0), (12, 2, 8))
    >>> jattn.positions.rotary_2d(x, np.indices((3, 4)).reshape(2, -1).T).shape
    (12, 2, 8)
    """
    check_features(x)
    if x.shape[-1] % 4 or not x.shape[-1]:
        raise ValueError(
            f"`x` must have a multiple of 4 features, pairs for rows and for columns; got shape {x.shape}."
        )
    check_choice("layout", layout, ("split", "joint"))
    check_pairs(pairs)
    quarter = x.shape[-1] // 4
    positions = _coordinates(positions, 2, "row and column")
    if frequencies is None:
        check_above("base", base, 1)
        frequencies = np.stack([rotary_frequencies(base, 2 * quarter)] * 2)
    elif dtype_of(frequencies) is None or jnp.shape(frequencies) != (2, quarter):
        raise ValueError(
            f"`frequencies` must be an array (2, {quarter}), of rows and of columns; got {describe(frequencies)}."
        )
    if layout == "joint" or pairs == "interleaved":
        axis_of_pair = np.repeat([0, 1], quarter)
        return _turn_by_axis(x, positions, frequencies.reshape(-1), axis_of_pair, pairs)
    halves = x[..., : 2 * quarter], x[..., 2 * quarter :]
    turned = [rotary(half, positions[..., axis], frequencies=frequencies[axis]) for axis, half in enumerate(halves)]
    return jnp.concatenate(turned, axis=-1)


def rotary_sections(
    x: Float[jax.Array, "*batch length heads dim"],
    positions: jax.Array | np.ndarray,
    sections: Sequence[int],
    *,
    base: float = 10000.0,
    pairs: Pairs = "half",
    dims: int | None = None,
    scaling: Scaling | None = None,
    interleaved: bool = False,
) -> Float[jax.Array, "*batch length heads dim"]:
    """Rotary embeddings with several coordinates that share one set of frequencies: M-RoPE (time, height, width).

    Pair i is rotated by p_a(i) θ_i, with θ_i = base^(-2i/dims) as in `rotary`. By default the first `sections[0]` pairs
    use the first coordinate, a(i) = 0, the next `sections[1]` pairs the second, and so on (Qwen2-VL; Wang et al. 2024,
    arXiv:2409.12191). Interleaved, pair i uses coordinate a = i mod axes if i < axes * sections[a], otherwise
    coordinate 0 (Qwen3-VL). For text tokens all coordinates are equal, and both reduce to `rotary`.

    Args:
        x: `[..., length, heads, dim]`, a query or a key.
        positions: `[..., length, axes]`. Hugging Face's `[3, batch, length]` needs
            `numpy.moveaxis(position_ids, 0, -1)`.
        sections: the number of pairs per coordinate, `dims / 2` in total (`mrope_section`).
        base: as in `rotary`.
        pairs: as in `rotary`.
        dims: as in `rotary`.
        scaling: as in `rotary`.
        interleaved: whether the coordinates alternate (`mrope_interleaved`).

    Raises:
        ValueError: `sections` are not nonnegative integers or do not sum to `dims / 2`, or `interleaved` is not a flag;
            or as in `rotary`.

    >>> import jax, numpy as np, jattn
    >>> x = jax.random.normal(jax.random.key(0), (12, 2, 16))
    >>> at = np.stack([np.zeros(12, int), *np.indices((3, 4)).reshape(2, -1)], -1)
    >>> jattn.positions.rotary_sections(x, at, (2, 3, 3)).shape
    (12, 2, 16)
    """
    check_features(x)
    check_flags(interleaved=interleaved)
    dims, frequencies, factor = scaled_frequencies(x, base, dims, scaling)
    check_pairs(pairs)
    if not isinstance(sections, (tuple, list)) or not all(type(size) is int and size >= 0 for size in sections):
        raise ValueError(f"`sections` must be a tuple of integers, the pairs of each coordinate; got {sections!r}.")
    if sum(sections) != dims // 2:
        raise ValueError(
            f"`sections` must add up to the {dims // 2} pairs of the {dims} rotated features; got {tuple(sections)}, "
            f"which add up to {sum(sections)}."
        )
    positions = _coordinates(positions, len(sections), "one number for each of `sections`")
    axis_of_pair = np.repeat(np.arange(len(sections)), sections)
    if interleaved:
        turns = np.arange(dims // 2) % len(sections)
        within = np.arange(dims // 2) < len(sections) * np.asarray(sections)[turns]
        axis_of_pair = np.where(within, turns, 0)
    turned = _turn_by_axis(x[..., :dims], positions, frequencies, axis_of_pair, pairs)
    if factor != 1.0:
        turned = (turned.astype(accumulation_dtype(x)) * factor).astype(x.dtype)
    return jnp.concatenate([turned, x[..., dims:]], axis=-1)


def _coordinates(positions: Any, axes: int, what: str) -> Any:
    if dtype_of(positions) is None or positions.ndim < 2 or positions.shape[-1] != axes:
        raise ValueError(f"`positions` must be an array [..., length, {axes}], {what}; got {describe(positions)}.")
    return positions


def _turn_by_axis(x: jax.Array, positions: Any, frequencies: Any, axis_of_pair: np.ndarray, pairs: Pairs) -> jax.Array:
    """Rotate pair i of `x [..., dims]` by `positions[..., axis_of_pair[i]] * frequencies[i]`."""
    count = len(axis_of_pair)
    first = np.arange(count) if pairs == "half" else 2 * np.arange(count)
    second = first + (count if pairs == "half" else 1)
    turned, places = [], []
    for axis in np.unique(axis_of_pair):
        own = axis_of_pair == axis
        features = np.concatenate([first[own], second[own]])
        turned.append(rotary(x[..., features], positions[..., axis], frequencies=frequencies[own]))
        places.append(features)
    return jnp.concatenate(turned, axis=-1)[..., np.argsort(np.concatenate(places))]

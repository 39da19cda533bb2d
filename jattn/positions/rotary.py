"""Rotary position embeddings (RoPE): pairs of features are rotated by angles proportional to the position."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..foundation.arguments import check_above, check_choice
from ..foundation.arrays import of_rank
from ..foundation.numerics import accumulation_dtype
from .angles import check_numbers, turned_angles
from .scaling import Scaling, rotary_frequencies

Pairs = Literal["half", "interleaved"]


def rotary(
    x: Float[jax.Array, "*batch length heads dim"],
    positions: jax.Array | np.ndarray,
    *,
    base: float = 10000.0,
    pairs: Pairs = "half",
    dims: int | None = None,
    scaling: Scaling | None = None,
    frequencies: jax.Array | np.ndarray | None = None,
) -> Float[jax.Array, "*batch length heads dim"]:
    """Rotate each pair of features (a, b) by the angle φ = position * θ (RoPE; Su et al. 2021, arXiv:2104.09864).

        (a, b) -> (a cos φ - b sin φ, b cos φ + a sin φ),  θ_i = base^(-2i/dims)

    Apply it to queries and keys before `attention`; their dot product then depends only on the relative position.
    Computed in float32 (float64 for float64 inputs) and returned in the dtype of `x`. Angles do not lose precision as
    positions grow: sines and cosines are correct to 1e-6 up to position 2^24, with every scaling. Only `frequencies`
    given as a JAX array are multiplied in float32, with a relative error of 6e-8 in the angle.

    Args:
        x: `[..., length, heads, dim]`, a query or a key.
        positions: integers (or floats of at least 32 bits) `[length]` or `[..., length]`, absolute token indices.
        base: a number above 1.
        pairs: `"half"` pairs feature i with i + dims/2 (GPT-NeoX; Llama checkpoints in Hugging Face's layout).
            `"interleaved"` pairs 2i with 2i + 1 (the paper; GPT-J). They differ by a permutation of the features.
        dims: how many leading features are rotated, an even number; by default all. The rest are unchanged.
        scaling: a `Scaling` for contexts longer than those of training: `Linear`, `NTK`, `DynamicNTK`, `YaRN`,
            `LongRoPE`, `Llama3` or `Proportional`. `jattn/positions/README.md` maps configurations of checkpoints to
            calls.
        frequencies: θ itself `[dims / 2]`, learned or fixed, in place of `base` and `scaling`.

    Raises:
        ValueError: `x` is not a floating-point array with at least three axes; `dims` is odd or too large; `base` is
            not above 1; `pairs` is unknown; shapes do not match; both `scaling` and `frequencies` are given; positions
            are 16-bit floats (which cannot tell tokens apart), or are known to be out of int32's range.

    >>> import jax, jax.numpy as jnp, jattn
    >>> x = jax.random.normal(jax.random.key(0), (1, 100, 8, 16))
    >>> jattn.positions.rotary(x, jnp.arange(100)).shape
    (1, 100, 8, 16)
    """
    check_features(x)
    dtype = accumulation_dtype(x)
    if frequencies is not None:
        dims, factor = _turned_dims(x, dims), 1.0
        if scaling is not None:
            raise ValueError("`scaling` and `frequencies` exclude each other: scale the frequencies that you give.")
        if jnp.shape(frequencies) != (dims // 2,):
            raise ValueError(
                f"`frequencies` must have shape ({dims // 2},), one for each pair of the {dims} rotated features; got "
                f"{jnp.shape(frequencies)}."
            )
    else:
        dims, frequencies, factor = scaled_frequencies(x, base, dims, scaling)
    positions = checked_positions(positions, x.shape)
    angles = turned_angles(positions, frequencies, dtype)
    turned = turn(x[..., :dims].astype(dtype), angles[..., None, :], pairs)
    if factor != 1.0:
        turned = turned * factor
    return jnp.concatenate([turned.astype(x.dtype), x[..., dims:]], axis=-1)


def scaled_frequencies(
    x: jax.Array, base: float, dims: int | None, scaling: Scaling | None
) -> tuple[int, np.ndarray, float]:
    """The number of rotated features, their frequencies θ `[dims / 2]`, and the factor on the rotated features."""
    dims = _turned_dims(x, dims)
    check_above("base", base, 1)
    if scaling is None:
        return dims, rotary_frequencies(base, dims), 1.0
    if not isinstance(scaling, Scaling):
        raise ValueError(f"`scaling` must be a `Scaling` of jattn.positions, such as `YaRN(...)`; got {scaling!r}.")
    return dims, scaling.frequencies(base, dims), scaling.factor_on_features()


def _turned_dims(x: jax.Array, dims: int | None) -> int:
    dims = x.shape[-1] if dims is None else dims
    if not isinstance(dims, int) or isinstance(dims, bool) or dims % 2 or not 0 < dims <= x.shape[-1]:
        raise ValueError(
            f"`dims` must be even, positive and at most the {x.shape[-1]} features of `x`, as features are rotated in "
            f"pairs; got {dims!r}."
        )
    return dims


def turn(x: jax.Array, angles: jax.Array, pairs: Pairs) -> jax.Array:
    """Rotate the pairs of `x [..., dims]` by `angles [..., dims / 2]`."""
    check_pairs(pairs)
    angles = of_rank(angles, x.ndim)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x, 2, axis=-1) if pairs == "half" else (x[..., 0::2], x[..., 1::2])
    parts = first * cos - second * sin, second * cos + first * sin
    if pairs == "half":
        return jnp.concatenate(parts, axis=-1)
    return jnp.stack(parts, axis=-1).reshape(x.shape)


def check_pairs(pairs: Any) -> None:
    """Check that `pairs` is one of the two layouts."""
    check_choice("pairs", pairs, ("half", "interleaved"))


def check_features(x: jax.Array) -> None:
    """Check that `x` is a floating-point array `[..., length, heads, dim]`."""
    if not hasattr(x, "dtype") or jnp.ndim(x) < 3 or not jnp.issubdtype(x.dtype, jnp.floating):
        got = f"{x.dtype} of shape {x.shape}" if hasattr(x, "dtype") else type(x).__name__
        raise ValueError(f"`x` must be a floating-point array [..., length, heads, dim]; got {got}.")


def checked_positions(positions: Any, shape: tuple[int, ...]) -> Any:
    """Positions as an array `[..., length]` that broadcasts against `x` without its head and feature axes."""
    positions = check_numbers(positions)
    lead = positions.shape[:-1]
    batch = shape[:-3]
    fits = positions.ndim > 0 and positions.shape[-1] == shape[-3] and len(lead) <= len(batch)
    fits = fits and all(have in (1, want) for have, want in zip(reversed(lead), reversed(batch), strict=False))
    if not fits:
        raise ValueError(
            f"`positions` must be numbers [{shape[-3]}] or [batch..., {shape[-3]}], one for each token of `x` of shape "
            f"{shape} [..., length, heads, dim]; got {positions.dtype} of shape {positions.shape}."
        )
    return positions

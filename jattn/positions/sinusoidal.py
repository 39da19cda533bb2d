"""Sinusoidal position embeddings: a vector of sines and cosines, added to a token's embedding."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arguments import check_above, check_choice, check_dtype, check_flags
from ..foundation.numerics import accumulation_dtype
from .angles import check_numbers, turned_angles


def sinusoidal(
    positions: jax.Array | np.ndarray,
    dim: int,
    *,
    layout: Literal["interleaved", "half"] = "interleaved",
    base: float = 10000.0,
    inclusive: bool = False,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """sin and cos of position * θ_i, θ_i = base^(-2i/dim), i = 0 .. dim/2 - 1 (Vaswani et al. 2017, arXiv:1706.03762).

    Args:
        positions: `[...]`, integers, or floats of at least 32 bits.
        dim: the number of features, even.
        layout: `"interleaved"` is sin, cos, sin, cos, ... as in the paper; `"half"` is all sines, then all cosines.
        base: a number above 1.
        inclusive: use θ_i = base^(-i/(dim/2 - 1)) instead, so that the last frequency is exactly 1/base. With
            `layout="half"`, this is the variant of Whisper (arXiv:2212.04356) and Tensor2Tensor.
        dtype: the dtype of the result. Computed in float32 (float64 for float64), correct to 1e-6 for integers up to
            2^24.

    Returns:
        `[..., dim]`.

    Raises:
        ValueError: `dim` is odd, or below 4 with `inclusive`; `layout` is unknown; `base` is not above 1; `inclusive`
            is not a flag, or `dtype` not floating-point; positions are 16-bit floats (which cannot tell tokens apart),
            or are known to be out of int32's range.

    >>> import jax.numpy as jnp
    >>> from jattn.positions import sinusoidal
    >>> print(sinusoidal(jnp.arange(2), 4).round(1))
    [[0.  1.  0.  1. ]
     [0.8 0.5 0.  1. ]]
    """
    if not isinstance(dim, int) or isinstance(dim, bool) or dim < 2 or dim % 2:
        raise ValueError(f"`dim` must be a positive even integer, a sine and a cosine for each frequency; got {dim!r}.")
    check_flags(inclusive=inclusive)
    check_dtype("dtype", dtype)
    if inclusive and dim < 4:
        raise ValueError(f"`dim` must be at least 4 with `inclusive`, a first and a last frequency; got {dim}.")
    check_choice("layout", layout, ("interleaved", "half"))
    check_above("base", base, 1)
    half = dim // 2
    inside = accumulation_dtype(dtype)
    frequencies = np.power(float(base), -np.arange(half) / (half - 1 if inclusive else half))
    angles = turned_angles(check_numbers(positions), frequencies, inside)
    parts = jnp.sin(angles), jnp.cos(angles)
    if layout == "half":
        return jnp.concatenate(parts, axis=-1).astype(dtype)
    return jnp.stack(parts, axis=-1).reshape(*angles.shape[:-1], dim).astype(dtype)

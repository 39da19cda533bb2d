"""xPos: rotary embeddings with dot products that decay with distance."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..foundation.arguments import check_above, check_choice
from ..foundation.arrays import describe
from ..foundation.numerics import accumulation_dtype
from .rotary import Pairs, check_features, checked_positions, rotary


def xpos(
    x: Float[jax.Array, "*batch length heads dim"],
    positions: jax.Array | np.ndarray,
    *,
    role: Literal["query", "key"],
    scale_base: float = 512.0,
    gamma: float = 0.4,
    center: int = 0,
    base: float = 10000.0,
    pairs: Pairs = "half",
) -> Float[jax.Array, "*batch length heads dim"]:
    """`rotary`, with pair i multiplied by ζ_i^(p / scale_base) in a query and by ζ_i^(-p / scale_base) in a key.

        ζ_i = (2i/dim + γ) / (1 + γ),  p = position - center

    Sun et al. 2022 (arXiv:2212.10554). The dot product of a query and a key depends only on their relative position,
    and decays with distance for keys before the query, so use it with causal attention. Far from the center the factors
    leave the range of floating-point numbers (ζ_0^(p / scale_base) is 1e-30 at p = 28,000). For long sequences set
    `center` to their middle, for queries and keys alike.

    Args:
        x: `[..., length, heads, dim]`, a query or a key, with `dim` even.
        positions: integers `[length]` or `[..., length]`, absolute token indices.
        role: whether `x` is a query or a key.
        scale_base: a number above 0. A larger one decays more slowly.
        gamma: γ, a number above 0.
        center: the position at which the factors are 1.
        base: as in `rotary`.
        pairs: as in `rotary`.

    Raises:
        ValueError: `role` is unknown, a number is out of range, or `center` is no integer; or as in `rotary`.

    >>> import jax, jax.numpy as jnp, jattn
    >>> x = jax.random.normal(jax.random.key(0), (100, 8, 16))
    >>> jattn.positions.xpos(x, jnp.arange(100), role="query").shape
    (100, 8, 16)
    """
    check_features(x)
    check_choice("role", role, ("query", "key"))
    check_above("scale_base", scale_base, 0)
    check_above("gamma", gamma, 0)
    if isinstance(center, bool) or not isinstance(center, int | np.integer):
        raise ValueError(f"`center` must be an integer, a position; got {describe(center)}.")
    dtype: Any = accumulation_dtype(x)
    turned = rotary(x.astype(dtype), positions, base=base, pairs=pairs)
    dim = x.shape[-1]
    log_zeta = np.log((np.arange(0, dim, 2) / dim + gamma) / (1 + gamma))
    log_zeta = np.tile(log_zeta, 2) if pairs == "half" else np.repeat(log_zeta, 2)
    distance = (checked_positions(positions, x.shape) - center).astype(dtype) / scale_base
    power = distance if role == "query" else -distance
    factor = jnp.exp(power[..., None, None] * jnp.asarray(log_zeta, dtype))
    return (turned * factor).astype(x.dtype)

"""xPos: rotary positions whose dot products decay with distance."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from .rotary import Pairs, check_features, checked_positions, rotary
from .scaling import check_above


def xpos(
    x: jax.Array,
    positions: jax.Array | np.ndarray,
    *,
    role: Literal["query", "key"],
    scale_base: float = 512.0,
    gamma: float = 0.4,
    center: int = 0,
    base: float = 10000.0,
    pairs: Pairs = "half",
) -> jax.Array:
    """`rotary`, and each pair of a query times ζ_i^(p / scale_base), of a key times ζ_i^(-p / scale_base).

        ζ_i = (2i/dim + γ) / (1 + γ),  p = position - center

    Sun et al. 2022 (arXiv:2212.10554). The dot product of a query and a key depends on their relative position only,
    and decays with it where the key is before the query: attend causally. Far from the center the factors leave the
    range of a float (ζ_0^(p / scale_base) is 1e-30 at p = 28,000), so give a `center` in the middle of a long
    sequence, the same for queries and keys.

    Args:
        x: `[..., length, heads, dim]`, a query or a key, `dim` even.
        positions: integers `[length]` or `[..., length]`, absolute token indices.
        role: which of the two `x` is.
        scale_base: a number above 0; the larger, the slower the decay.
        gamma: a number above 0.
        center: the position where the factors are 1.
        base, pairs: as of `rotary`.

    Raises:
        ValueError: another role, a number out of its range; as `rotary`.

    >>> import jax, jax.numpy as jnp, jattn
    >>> x = jax.random.normal(jax.random.key(0), (100, 8, 16))
    >>> jattn.positions.xpos(x, jnp.arange(100), role="query").shape
    (100, 8, 16)
    """
    check_features(x)
    if role not in ("query", "key"):
        raise ValueError(f"`role` must be 'query' or 'key'; got {role!r}.")
    check_above("scale_base", scale_base, 0)
    check_above("gamma", gamma, 0)
    dtype: Any = jnp.promote_types(x.dtype, jnp.float32)
    turned = rotary(x.astype(dtype), positions, base=base, pairs=pairs)
    dim = x.shape[-1]
    log_zeta = np.log((np.arange(0, dim, 2) / dim + gamma) / (1 + gamma))
    log_zeta = np.tile(log_zeta, 2) if pairs == "half" else np.repeat(log_zeta, 2)
    distance = (checked_positions(positions, x.shape) - center).astype(dtype) / scale_base
    power = distance if role == "query" else -distance
    factor = jnp.exp(power[..., None, None] * jnp.asarray(log_zeta, dtype))
    return (turned * factor).astype(x.dtype)

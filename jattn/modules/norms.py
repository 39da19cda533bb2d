"""Normalization by the root mean square, and by mean and variance."""

from typing import Any

import jax
import jax.numpy as jnp


def rms_norm(x: jax.Array, scale: Any = None, epsilon: float = 1e-6) -> jax.Array:
    """x / √(mean(x²) + ε), times a scale: Zhang & Sennrich 2019 (arXiv:1910.07467), over the last axis.

    Args:
        x: `[..., dim]`.
        scale: that broadcasts to `x`, or None.
        epsilon: ε.

    Returns:
        As `x`; computed in float32 (float64 for float64).

    >>> import jax.numpy as jnp
    >>> print(rms_norm(jnp.array([3.0, -3.0]), jnp.array([1.0, 2.0])).round(3))
    [ 1. -2.]
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    normal = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + epsilon)
    return (normal if scale is None else normal * scale.astype(wide.dtype)).astype(x.dtype)


def layer_norm(x: jax.Array, scale: Any = None, bias: Any = None, epsilon: float = 1e-5) -> jax.Array:
    """(x - mean(x)) / √(var(x) + ε), times a scale, plus a bias: Ba et al. 2016 (arXiv:1607.06450), over the last axis.

    Args:
        x: `[..., dim]`.
        scale: that broadcasts to `x`, or None.
        bias: likewise.
        epsilon: ε.

    Returns:
        As `x`; computed in float32 (float64 for float64).

    >>> import jax.numpy as jnp
    >>> print(layer_norm(jnp.array([5.0, 1.0]), bias=jnp.array([0.0, 1.0])).round(3))
    [1. 0.]
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centered = wide - wide.mean(-1, keepdims=True)
    normal = rms_norm(centered, scale, epsilon)
    return (normal if bias is None else normal + bias.astype(wide.dtype)).astype(x.dtype)

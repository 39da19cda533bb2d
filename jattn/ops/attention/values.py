"""Products of weights and values. A masked pair contributes nothing, even if its value is NaN or inf."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.arrays import is_static
from ...foundation.numerics import accumulation_dtype, without_nonfinite
from ...foundation.sharding import auto_devices, vary, varying_axes


def grouped_product(weights: jax.Array, values: jax.Array, precision: Any = None) -> jax.Array:
    """`[..., q_heads, q, k]` times `[..., kv_heads, k, d]`: `[..., q_heads, q, d]`, without repeating the values."""
    *batch, q_heads, q_len, k_len = weights.shape
    kv_heads, dim = values.shape[-3], values.shape[-1]
    grouped = weights.reshape(*batch, kv_heads, q_heads // kv_heads * q_len, k_len)
    dtype = accumulation_dtype(values)
    out = jnp.einsum("...hqk,...hkd->...hqd", grouped, values, precision=precision, preferred_element_type=dtype)
    return out.reshape(*batch, q_heads, q_len, dim)


def multiply_values(weights: jax.Array, values: jax.Array, allowed: jax.Array) -> jax.Array:
    """`weights @ values`, in which a masked pair contributes nothing even if its value is NaN or inf.

    Args:
        weights: `[..., q_heads, q, k]`, 0 for masked pairs; rounded to the dtype of the values for the product.
        values: `[..., kv_heads, k, d]`.
        allowed: booleans, broadcastable to the weights.
    """
    weights = weights.astype(values.dtype)
    # Under `vmap` inside `shard_map`, JAX does not by itself make values captured by a branch of `cond` varying.
    allowed = vary(allowed, varying_axes(weights, values))
    clean = grouped_product(weights, without_nonfinite(values))

    def with_nonfinite():
        return clean + _nonfinite_sums(jnp.broadcast_to(allowed, weights.shape), values)

    if auto_devices(weights, values) > 1:  # a test whether all values are finite would need communication
        return with_nonfinite()
    return jax.lax.cond(jnp.isfinite(values).all(), lambda: clean, with_nonfinite)


def add_values(
    total: Callable[[], jax.Array],
    weights: jax.Array,
    values: Callable[[], jax.Array],
    allowed: Callable[[], jax.Array],
    axes: tuple[str, ...],
) -> jax.Array:
    """`total() + multiply_values(weights, values(), allowed())`, not differentiable, for a loop.

    Values that are NaN or inf are handled in a branch, from functions evaluated there, so that XLA compiles and runs
    fewer operations.

    Args:
        total: `[..., q_heads, q, d]`.
        weights: as in `multiply_values`.
        values: as in `multiply_values`.
        allowed: as in `multiply_values`.
        axes: the mesh axes over which the result varies.
    """
    tile = values()
    weights = weights.astype(tile.dtype)

    def with_nonfinite():
        # Sliced again, and kept apart, so that XLA compiles fewer operations.
        tile = jax.lax.optimization_barrier(values())
        clean = grouped_product(weights, without_nonfinite(tile))
        return vary(total() + clean + _nonfinite_sums(jnp.broadcast_to(allowed(), weights.shape), tile), axes)

    if auto_devices(weights, tile) > 1:  # the test below would need communication
        return with_nonfinite()
    product = grouped_product(weights, tile)
    # Each NaN or inf of the tile reaches the product, as 0 * NaN is NaN. So does a NaN among the weights, and this sum
    # may overflow; the branch is right for both.
    finite = jnp.isfinite(jnp.sum(product))
    return jax.lax.cond(finite, lambda: vary(total() + product, axes), with_nonfinite)


def _nonfinite_sums(reach: jax.Array, values: jax.Array) -> jax.Array:
    """The sums over the pairs in `reach` of values that are NaN or inf: 0, inf, -inf or NaN, `[..., q_heads, q, d]`."""
    dtype = accumulation_dtype(values)

    def count(kinds):
        # A matrix unit that rounds to bfloat16 would lose the 1 of `unit + 1` below.
        return grouped_product(reach.astype(dtype), kinds.astype(dtype), precision="highest")

    above, below = ~(values < jnp.inf), ~(values > -jnp.inf)  # +inf and -inf; NaN counts as both: inf - inf
    unit = 4096
    if is_static(reach.shape[-1]) and reach.shape[-1] < unit:  # one product counts both, exactly
        both = count(above + float(unit) * below)
        below = jnp.floor(both / unit)
        above = both - unit * below
    else:
        above, below = count(above), count(below)
    return (jnp.where(above > 0, jnp.inf, 0.0) - jnp.where(below > 0, jnp.inf, 0.0)).astype(dtype)

"""Keeping NaN and inf of masked-out keys and values away from sums in which their weight is 0 (0 * NaN is NaN)."""

import jax
import jax.numpy as jnp
import numpy as np

from ...foundation.numerics import accumulation_dtype, without_nonfinite
from ...foundation.sharding import auto_devices
from ...foundation.varying import vary, varying_axes


def grouped_product(weights: jax.Array, values: jax.Array) -> jax.Array:
    """`[..., q_heads, q, k]` with `[..., kv_heads, k, d]` -> `[..., q_heads, q, d]`, without repeating the values."""
    *batch, q_heads, q_len, k_len = weights.shape
    kv_heads, dim = values.shape[-3], values.shape[-1]
    grouped = weights.reshape(*batch, kv_heads, q_heads // kv_heads * q_len, k_len)
    out = jnp.einsum("...hqk,...hkd->...hqd", grouped, values, preferred_element_type=accumulation_dtype(values))
    return out.reshape(*batch, q_heads, q_len, dim)


def multiply_values(weights: jax.Array, values: jax.Array, allowed: jax.Array) -> jax.Array:
    """`weights @ values` in which a pair that is not allowed contributes nothing, whatever its value holds.

    Args:
        weights: `[..., q_heads, q, k]`, 0 where not allowed; rounded to the dtype of the values for the product.
        values: `[..., kv_heads, k, d]`.
        allowed: boolean, broadcastable to the weights.
    """
    weights = weights.astype(values.dtype)
    # Under `vmap` inside `shard_map`, JAX cannot make what a branch of `cond` closes over vary by itself.
    allowed = vary(allowed, varying_axes(weights, values))
    clean = grouped_product(weights, without_nonfinite(values))

    def with_nonfinite():
        reach = jnp.broadcast_to(allowed, weights.shape).astype(values.dtype)
        signs = np.array([1, -1])
        kinds = ~(values[..., None] * signs < jnp.inf)  # of +inf, of -inf; NaN is of both: inf - inf
        kinds = kinds.reshape(*values.shape[:-1], 2 * values.shape[-1]).astype(values.dtype)
        reached = grouped_product(reach, kinds).reshape(*clean.shape, 2) > 0
        return clean + jnp.where(reached, signs * np.inf, 0).sum(-1).astype(clean.dtype)

    if auto_devices(weights, values) > 1:  # to ask whether all are finite, the devices would have to speak
        return with_nonfinite()
    return jax.lax.cond(jnp.isfinite(values).all(), lambda: clean, with_nonfinite)

"""Products in which masked-out NaN and inf do not count, although 0 * NaN is NaN."""

import jax
import jax.numpy as jnp
import numpy as np

from ...foundation.arrays import of_rank
from ...foundation.numerics import accumulation_dtype, without_nonfinite
from ...foundation.sharding import auto_devices
from ...foundation.varying import vary, varying_axes


def grouped_product(weights: jax.Array, values: jax.Array) -> jax.Array:
    """`[..., q_heads, q, k]` times `[..., kv_heads, k, d]`: `[..., q_heads, q, d]`, without repeating the values."""
    *batch, q_heads, q_len, k_len = weights.shape
    kv_heads, dim = values.shape[-3], values.shape[-1]
    grouped = weights.reshape(*batch, kv_heads, q_heads // kv_heads * q_len, k_len)
    out = jnp.einsum("...hqk,...hkd->...hqd", grouped, values, preferred_element_type=accumulation_dtype(values))
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
        reach = jnp.broadcast_to(allowed, weights.shape).astype(values.dtype)
        signs = of_rank(np.array([1, -1]), values.ndim + 1)
        kinds = ~(values[..., None] * signs < jnp.inf)  # counts of +inf and -inf; NaN counts as both: inf - inf
        kinds = kinds.reshape(*values.shape[:-1], 2 * values.shape[-1]).astype(values.dtype)
        reached = grouped_product(reach, kinds).reshape(*clean.shape, 2) > 0
        return clean + jnp.where(reached, signs * np.inf, 0.0).sum(-1).astype(clean.dtype)

    if auto_devices(weights, values) > 1:  # a test whether all values are finite would need communication
        return with_nonfinite()
    return jax.lax.cond(jnp.isfinite(values).all(), lambda: clean, with_nonfinite)

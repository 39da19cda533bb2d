"""Sums of products as logarithms, in which a weight of 0 is -inf and never becomes NaN."""

import jax
import jax.numpy as jnp


def log_sum(terms: jax.Array, axis: int) -> jax.Array:
    """log Σ exp(terms); over nothing but -inf it is -inf, with zero gradients of every order."""
    top = jax.lax.stop_gradient(terms.max(axis, keepdims=True, initial=-jnp.inf))
    top = jnp.where(jnp.isneginf(top), 0, top)
    total = jnp.exp(terms - top).sum(axis)
    some = total > 0
    return jnp.where(some, jnp.log(jnp.where(some, total, 1)) + jnp.squeeze(top, axis), -jnp.inf)


def log_add(left: jax.Array, right: jax.Array) -> jax.Array:
    """log(exp(left) + exp(right)), elementwise."""
    return log_sum(jnp.stack(jnp.broadcast_arrays(left, right)), 0)

"""Keeps NaN and inf in a masked-out query away from the gradients of a similarity's parameters."""

import jax
import jax.numpy as jnp

from ..scores.bias import Bias


def finite_query(query: jax.Array) -> tuple[jax.Array, Bias]:
    """Replace NaN and inf in the query by 0; also return a bias that makes all scores of the affected rows NaN.

    `prepare` is differentiated by plain JAX. If a query row contains NaN but attends to nothing, its cotangent is 0,
    and 0 * NaN would turn the gradient of the projection's weight into NaN. With the row replaced by 0 it stays finite.
    A row that does attend still yields NaN, through the bias.
    """
    finite = jnp.isfinite(query)
    poison = jnp.where(finite.all(-1), 0, jnp.nan).astype(jnp.float32)
    return jnp.where(finite, query, 0), Bias(jnp.swapaxes(poison, -1, -2)[..., :, None])

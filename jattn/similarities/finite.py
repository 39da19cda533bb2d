"""Keeps NaN and inf in a masked-out query away from the gradients of a similarity's parameters."""

import jax
import jax.numpy as jnp

from ..foundation.numerics import split_nonfinite
from ..scores.bias import Bias


def finite_query(query: jax.Array) -> tuple[jax.Array, Bias]:
    """Replace NaN and inf in the query by 0; also return a bias that makes all scores of the affected rows NaN.

    `prepare` is differentiated by plain JAX. If a query row contains NaN but attends to nothing, its cotangent is 0,
    and 0 * NaN would turn the gradient of the projection's weight into NaN. With the row replaced by 0 it stays finite.
    A row that does attend still yields NaN, through the bias.
    """
    clean, nonfinite = split_nonfinite(query)
    poison = jnp.where(nonfinite.any(-1), jnp.nan, 0).astype(jnp.float32)
    return clean, Bias(jnp.swapaxes(poison, -1, -2)[..., :, None])

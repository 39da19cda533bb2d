"""Keeping NaN and inf of a query that attends to nothing away from what rewrites it."""

import jax
import jax.numpy as jnp

from ..scores.bias import Bias


def finite_query(query: jax.Array) -> tuple[jax.Array, Bias]:
    """The query with its NaN and inf set to 0, and a bias that puts NaN into all scores of such rows.

    A rewritten query is differentiated outside the implementations, where the zero cotangent of a row that may
    attend to nothing would meet its NaN, and the weight that rewrites it would get 0 * NaN. A row that does attend
    gets NaN from the bias.
    """
    finite = jnp.isfinite(query)
    broken = jnp.where(finite.all(-1), 0, jnp.nan).astype(jnp.float32)
    return jnp.where(finite, query, 0), Bias(jnp.swapaxes(broken, -1, -2)[..., :, None])

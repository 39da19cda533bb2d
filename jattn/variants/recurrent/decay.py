"""The decay of Mamba-2, for each head and step, and where its parameters start."""

from typing import Any

import jax
import jax.numpy as jnp

from ...layers.layer import Parameter, bias

RATES = (1.0, 16.0)
STEP_SIZES = (1e-3, 1e-1)


def _rates(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jnp.log(jax.random.uniform(key, shape, dtype, *RATES))


def _step_sizes(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    shortest, longest = jnp.log(jnp.asarray(STEP_SIZES, dtype))
    wanted = jnp.exp(jax.random.uniform(key, shape, dtype, shortest, longest))
    return jnp.log(jnp.expm1(wanted))


def log_rate(heads: int) -> Parameter:
    """Initializer of a: exp(a) is uniform between 1 and 16, as in the authors' code."""
    return bias(heads, init=_rates)


def step_size_bias(*shape: int) -> Parameter:
    """Initializer of b: softplus(b) is log-uniform between 0.001 and 0.1.

    An average token then keeps exp(-softplus(b) exp(a)) of the state: from 0.2 to 0.999, and more than 0.9 in half of
    the heads. If every head started at one half, a state would be forgotten before training finds out what to keep.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> first = step_size_bias(1000).init(jax.random.key(0), (1000,), jnp.float32)
    >>> kept = jnp.exp(-jax.nn.softplus(first) * jnp.exp(log_rate(1000).init(jax.random.key(1), (1000,), jnp.float32)))
    >>> print(jnp.median(kept).round(2), kept.min() > 0.2)
    0.93 True
    """
    return bias(*shape, init=_step_sizes)

"""Sums and products of weights in log space, where a weight of 0 is -inf and never causes NaN."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ...foundation.numerics import log_sum_exp


def log_add(left: jax.Array, right: jax.Array) -> jax.Array:
    """log(exp(left) + exp(right)), elementwise."""
    return log_sum_exp(jnp.stack(jnp.broadcast_arrays(left, right)), 0)


def normalized(terms: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The terms, shifted so that their exponentials sum to 1 over the last axis, and the log of the original sum.

    >>> import jax.numpy as jnp
    >>> message, total = normalized(jnp.array([1000.0, 1000.0]))
    >>> print(jnp.exp(message).round(3), f"{total - 1000:.3f}")
    [0.5 0.5] 0.693
    """
    total = log_sum_exp(terms, -1)
    return terms - jnp.where(jnp.isneginf(total), 0, total)[..., None], total


class Log(NamedTuple):
    """A logarithm stored as `whole + fraction`, so that its fraction keeps full precision however large it is.

    In float32, a sum of a thousand logarithms of size 1 is off by 6e-5, and so is, relatively, the number it stands
    for. Whole numbers add exactly, and fractions stay small.

    whole: a whole number in floating point, not differentiated.
    fraction: within 1/2 of 0 (1 after a product of two); -inf for a weight of 0.
    """

    whole: jax.Array
    fraction: jax.Array


NOTHING = Log(0.0, -jnp.inf)  # type: ignore[arg-type]  (Python numbers, for padding)


def separated(terms: jax.Array) -> Log:
    """Split logarithms into whole numbers and fractions.

    >>> import jax.numpy as jnp
    >>> separated(jnp.float32(100.25))
    Log(whole=Array(100., dtype=float32), fraction=Array(0.25, dtype=float32))
    """
    whole = jax.lax.stop_gradient(jnp.round(jnp.where(jnp.isneginf(terms), 0, terms)))
    return Log(whole, terms - whole)


def combined(log: Log) -> jax.Array:
    """The logarithm as one number."""
    return log.whole + log.fraction


def multiplied(*logs: Log) -> Log:
    """The logarithm of a product of weights."""
    return functools.reduce(lambda a, b: Log(a.whole + b.whole, a.fraction + b.fraction), logs)


def summed(log: Log, axis: int) -> Log:
    """The logarithm of a sum of weights, as in `log_sum_exp`."""
    zero = jnp.isneginf(log.fraction)
    top = jnp.where(zero, -jnp.inf, log.whole).max(axis, keepdims=True, initial=-jnp.inf)
    top = jax.lax.stop_gradient(jnp.where(jnp.isneginf(top), 0, top))
    found = separated(log_sum_exp(jnp.where(zero, -jnp.inf, log.whole - top + log.fraction), axis))
    return Log(found.whole + jnp.squeeze(top, axis), found.fraction)

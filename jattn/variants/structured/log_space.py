"""Sums of products as logarithms, in which a weight of 0 is -inf and never becomes NaN."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ...foundation.numerics import log_sum_exp


def log_add(left: jax.Array, right: jax.Array) -> jax.Array:
    """log(exp(left) + exp(right)), elementwise."""
    return log_sum_exp(jnp.stack(jnp.broadcast_arrays(left, right)), 0)


def normalized(terms: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Terms whose exponentials sum to 1 over the last axis, and the logarithm of what they summed to.

    >>> import jax.numpy as jnp
    >>> message, total = normalized(jnp.array([1000.0, 1000.0]))
    >>> print(jnp.exp(message).round(3), f"{total - 1000:.3f}")
    [0.5 0.5] 0.693
    """
    total = log_sum_exp(terms, -1)
    return terms - jnp.where(jnp.isneginf(total), 0, total)[..., None], total


class Log(NamedTuple):
    """A logarithm, however large, with all digits of its fraction: `whole + fraction`.

    In float32 the sum of a thousand logarithms of size 1 is off by 6e-5, and so is the number that it stands for. Whole
    numbers add exactly, and fractions stay small.

    whole: a whole number in floating point, not differentiated.
    fraction: within 1/2 of 0 (1 after a product of two); -inf for a weight of 0.
    """

    whole: jax.Array
    fraction: jax.Array


NOTHING = Log(0.0, -jnp.inf)  # type: ignore[arg-type]  (Python numbers, for padding)


def separated(terms: jax.Array) -> Log:
    """Whole number and fraction of logarithms.

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
    """Of the product of weights."""
    return functools.reduce(lambda a, b: Log(a.whole + b.whole, a.fraction + b.fraction), logs)


def summed(log: Log, axis: int) -> Log:
    """Of the sum of weights; as `log_sum_exp`."""
    zero = jnp.isneginf(log.fraction)
    top = jnp.where(zero, -jnp.inf, log.whole).max(axis, keepdims=True, initial=-jnp.inf)
    top = jax.lax.stop_gradient(jnp.where(jnp.isneginf(top), 0, top))
    found = separated(log_sum_exp(jnp.where(zero, -jnp.inf, log.whole - top + log.fraction), axis))
    return Log(found.whole + jnp.squeeze(top, axis), found.fraction)

"""Numerically safe sums, and the handling of NaN and inf."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def accumulation_dtype(*arrays: Any) -> jnp.dtype:
    """The dtype in which arrays (or dtypes) are summed: float64 if any of them is float64, otherwise float32.

    >>> accumulation_dtype(jnp.bfloat16)
    dtype('float32')
    """
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def widen(array: jax.Array) -> jax.Array:
    """Convert an array to the dtype in which it is summed: float32, or float64 if it is float64.

    >>> widen(jnp.ones(2, jnp.bfloat16)).dtype
    dtype('float32')
    """
    return array.astype(accumulation_dtype(array))


def where(condition: Any, chosen: Any, other: Any) -> jax.Array:
    """`jnp.where` of an array and a Python number, which becomes a constant of the array's dtype.

    `jnp.where` makes it a constant and a conversion. In loops inside loops, XLA moves conversions outward and constants
    inward, one loop at a time, and each move is a pass over the whole program.

    >>> where(jnp.array([True, False]), 0, jnp.array([2, 2], jnp.bfloat16))
    Array([0, 2], dtype=bfloat16)
    """
    array = other if isinstance(chosen, (int, float)) else chosen
    chosen, other = (
        np.asarray(one, array.dtype)[()] if isinstance(one, (int, float)) else one for one in (chosen, other)
    )
    return jnp.where(condition, chosen, other)


def inner(left: jax.Array, right: jax.Array) -> jax.Array:
    """The inner products of vectors, `[..., features]` and `[..., features]` -> `[...]`, in full precision.

    On a CPU, JAX 0.10 takes about a hundred times longer for `(left * right).sum(-1)`.

    >>> print(inner(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.ones((2, 2))))
    [3. 7.]
    """
    return jnp.einsum("...d,...d->...", left, right, precision="highest")


def shifted_exp(terms: jax.Array, axis: Any = -1, *, least: Any = None) -> tuple[jax.Array, jax.Array]:
    """The maximum of the terms, and exp(terms - maximum), which cannot overflow.

    Args:
        terms: may be -inf, for a weight of 0.
        axis: one axis or several.
        least: one more term, of size 1 along `axis`, that takes part only in the maximum.

    Returns:
        The maximum, with `axis` kept and without gradient, -inf if all terms are; and the weights. Where the maximum is
        -inf, the weights are 0.

    >>> [array.tolist() for array in shifted_exp(jnp.array([1000.0, -jnp.inf]))]
    [[1000.0], [1.0, 0.0]]
    """
    top = jax.lax.stop_gradient(terms.max(axis, keepdims=True, initial=-jnp.inf))
    if least is not None:
        top = jnp.maximum(top, jax.lax.stop_gradient(least))
    return top, jnp.exp(terms - jnp.where(jnp.isneginf(top), 0, top))


def log_sum_exp(terms: jax.Array, axis: int = -1, *, keepdims: bool = False) -> jax.Array:
    """log Σ exp(terms). If all terms are -inf, the result is -inf, with zero gradients of every order.

    >>> print(log_sum_exp(jnp.array([[0.0, 0.0], [-jnp.inf, -jnp.inf]])).round(3))
    [0.693  -inf]
    """
    top, weights = shifted_exp(terms, axis)
    total = weights.sum(axis, keepdims=True)
    some = total > 0
    total = jnp.where(some, jnp.log(jnp.where(some, total, 1)) + jnp.where(some, top, 0), -jnp.inf)
    return total if keepdims else jnp.squeeze(total, axis)


def softmax_or_zero(terms: jax.Array, axis: Any = -1) -> jax.Array:
    """The softmax over one axis or several. If all terms are -inf, the result is 0, with zero gradients.

    >>> print(softmax_or_zero(jnp.array([[0.0, 0.0], [-jnp.inf, -jnp.inf]])))
    [[0.5 0.5]
     [0.  0. ]]
    """
    weights = shifted_exp(terms, axis)[1]
    total = weights.sum(axis, keepdims=True)
    return weights / jnp.where(total == 0, 1, total)


def unit(vectors: jax.Array) -> jax.Array:
    """Normalize vectors to unit length, in float32 (float64). Zero vectors stay zero, with zero gradient.

    >>> print(unit(jnp.array([[3e30, 4e30], [0.0, 0.0]])))
    [[0.6 0.8]
     [0.  0. ]]
    """
    vectors = widen(vectors)
    # Scaling does not change the direction. With the largest entry 1, squares neither overflow nor underflow to 0.
    largest = jax.lax.stop_gradient(jnp.abs(vectors).max(-1, keepdims=True, initial=0))
    vectors = vectors / jnp.where(largest == 0, 1, largest)
    square = (vectors * vectors).sum(-1, keepdims=True)
    zero = square == 0
    return jnp.where(zero, 0, vectors * jax.lax.rsqrt(jnp.where(zero, 1, square)))


def split_nonfinite(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The array with NaN and inf replaced by 0, and where they were.

    Gradients through the first part are finite: a cotangent of 0 never meets a NaN (0 * NaN is NaN). To restore NaN in
    the result, use `jnp.where(nonfinite, jnp.nan, result)`.

    >>> [one.tolist() for one in split_nonfinite(jnp.array([1.0, jnp.nan]))]
    [[1.0, 0.0], [False, True]]
    """
    nonfinite = ~jnp.isfinite(array)
    return where(nonfinite, 0, array), nonfinite


def split_nonfinite_rows(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same for whole rows (the last axis): `[..., features]` -> `[..., features]` and booleans `[...]`.

    >>> [one.tolist() for one in split_nonfinite_rows(jnp.array([[1.0, jnp.nan], [2.0, 3.0]]))]
    [[[0.0, 0.0], [2.0, 3.0]], [True, False]]
    """
    nonfinite = ~jnp.isfinite(array).all(-1)
    return where(nonfinite[..., None], 0, array), nonfinite


def without_nonfinite(array: jax.Array) -> jax.Array:
    """The array with NaN and inf replaced by 0. No gradient flows to the replaced entries."""
    return split_nonfinite(array)[0]


def seen_so_far(flags: jax.Array) -> jax.Array:
    """Whether any feature of `[..., length, features]` was True at or before each position.

    >>> seen_so_far(jnp.array([[False], [True], [False]]))[:, 0].tolist()
    [False, True, True]
    """
    return jnp.cumsum(flags, -2) > 0

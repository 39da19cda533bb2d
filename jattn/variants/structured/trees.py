"""What projective and nonprojective trees share: checks, marginals, and the expected parent of a word."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...foundation.numerics import accumulation_dtype
from ...foundation.shapes import check_lengths, check_shapes, token_mask


class TreeMarginals(NamedTuple):
    """The probability of each arc.

    arcs: `[..., parent, child]`, p(parent -> child).
    roots: `[..., child]`, p(root -> child). With the arcs into a child, it sums to 1.
    """

    arcs: jax.Array
    roots: jax.Array


def soft_parents(arcs: jax.Array, states: jax.Array, *, lengths: Any = None) -> jax.Array:
    """The expected parent of each word, c_j = Σ_i p(i -> j) h_i (arXiv:1702.00887, section 3.2).

    Args:
        arcs: p `[..., parent, child]`, of `projective_marginals` or `nonprojective_marginals`.
        states: h `[..., length, features]`.
        lengths: integers `[...]`, or one for all; states beyond are ignored.

    Returns:
        `[..., length, features]`, in the dtype of `states`. The probability of the root is left out, because it has no
        state.

    Raises:
        ValueError: shapes do not match; `lengths` are not integers, have another shape, or are too long.

    >>> import jax.numpy as jnp
    >>> print(soft_parents(jnp.array([[0.0, 1.0], [0.0, 0.0]]), jnp.array([[5.0], [7.0]])))
    [[0.]
     [5.]]
    """
    _check(arcs, None)
    check_shapes(arcs=(arcs, "... length length"), states=(states, "... length features"))
    own = token_mask(lengths, states.shape[:-2], states.shape[-2])
    wide = jnp.where(own[..., None], states, 0).astype(accumulation_dtype(states, arcs))
    return jnp.einsum("...ij,...if->...jf", arcs.astype(wide.dtype), wide).astype(states.dtype)


def _check(arcs: Any, roots: Any) -> None:
    square = {"length": arcs.shape[-2]} if getattr(arcs, "ndim", 0) >= 2 else {}
    check_shapes(square, arcs=(arcs, "... length length"))
    if roots is not None:
        check_shapes(arcs=(arcs, "... length length"), roots=(roots, "... length"))


LogPartition = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""One example: arcs `[n, n]` and roots `[n]`, -inf beyond its length, and the length."""


def over_examples(one: LogPartition, arcs: Any, roots: Any, lengths: Any) -> jax.Array:
    """log Z of each example: checked, padded with -inf, in float32 (float64), and batched."""
    _check(arcs, roots)
    *batch, length, _ = arcs.shape
    dtype = accumulation_dtype(arcs) if roots is None else accumulation_dtype(arcs, roots)
    roots = jnp.zeros(arcs.shape[:-1], dtype) if roots is None else roots.astype(dtype)
    lengths = check_lengths(lengths, tuple(batch), length)
    own = token_mask(lengths, lengths.shape, length)
    real = own[..., :, None] & own[..., None, :] & ~jnp.eye(length, dtype=bool)
    arcs = jnp.where(real, arcs.astype(dtype), -jnp.inf)
    roots = jnp.where(own, roots, -jnp.inf)
    for _ in batch:
        one = jax.vmap(one)
    return one(arcs, roots, lengths)


def marginals_of(log_partition: Callable[..., jax.Array], arcs: Any, roots: Any, **options: Any) -> TreeMarginals:
    """The gradient of log Z with respect to every score."""
    _check(arcs, roots)
    roots = jnp.zeros(arcs.shape[:-1], arcs.dtype) if roots is None else roots
    dtype = accumulation_dtype(arcs, roots)
    scores = (arcs.astype(dtype), roots.astype(dtype))
    return TreeMarginals(*jax.grad(lambda given: log_partition(*given, **options).sum())(scores))

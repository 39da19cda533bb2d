"""A tile of scores: its mask, scores and weights, their derivatives, and products with values.

A tile is a set of queries and keys: rows of query and key, and the pieces sliced to them. Since pieces are aligned to
`[batch..., head, query, key]` and use absolute positions, a tile is evaluated like the whole. Every function here
takes plain arrays and may be traced by a loop over tiles, by a kernel, or for all pairs at once: all implementations
share them.

    allowed = allowed_pairs(tile)                                            which pairs may attend
    scores = scores_of(tile, raw, scale)                                     forward
    scores, pull = scores_vjp(tile, raw, scale, allowed)                     backward, of a dot product `raw`
    scores, pull = pairwise_vjp(tile, query, key, scale, allowed)            backward, of any other similarity
    weights, d_scores, d_floats = weights_vjp(tile, scores, lse, ...)        backward, of the normalizer

Masked pairs influence nothing, forward or backward. A masked pair has a cotangent of 0, but 0 times an infinite slope
(of a square root at a negative distance, say) is NaN, and sums over pairs would spread it to every gradient. So a
function that is not finite everywhere never sees masked pairs: it is evaluated at the inputs of an allowed pair instead
(its score, its positions, its entries of every array), where its author is responsible for it. A score of -inf
excludes a pair in the same way.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...foundation.arrays import is_static
from ...foundation.functions import may_be_singular
from ...foundation.numerics import accumulation_dtype, where, without_nonfinite
from ...foundation.sharding import auto_devices, vary, varying_axes
from ...normalizers import Normalizer
from ...scores.base import Score
from ...similarities import Similarity
from .call import Pieces


def is_float(leaf: Any) -> bool:
    """Whether an array has a gradient."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def floats_of(pieces: Pieces) -> tuple[list[Any], Callable[[list[Any]], Pieces]]:
    """The floating-point arrays of the pieces, and a function that puts others in their place."""
    leaves, tree = jax.tree.flatten(pieces)
    floats = [leaf for leaf in leaves if is_float(leaf)]

    def rebuild(new: list[Any]) -> Pieces:
        rest = iter(new)
        return jax.tree.unflatten(tree, [next(rest) if is_float(leaf) else leaf for leaf in leaves])

    return floats, rebuild


def allowed_pairs(tile: Pieces) -> jax.Array | None:
    """Which pairs may attend, broadcastable to the scores; None for all."""
    return None if tile.mask is None else tile.mask.allows(tile.query_positions, tile.key_positions)


def dropout_factor(tile: Pieces) -> jax.Array | None:
    """The factor of the weights after the normalizer; None for 1."""
    return None if tile.dropout is None else tile.dropout.factor(tile.query_positions, tile.key_positions)


def scores_of(tile: Pieces, raw: jax.Array, scale: float) -> jax.Array:
    """The scores of a tile. Those of masked pairs are arbitrary.

    Args:
        tile: the sliced pieces.
        raw: the numbers of the similarity, `[batch..., head, q, k]`.
        scale: their factor.
    """
    scores = raw if scale == 1.0 else raw * scale
    for score in tile.scores:
        scores = score.modify(scores, tile.query_positions, tile.key_positions)
    return scores


def scores_vjp(
    tile: Pieces, raw: jax.Array, scale: float, allowed: jax.Array | None
) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    """`scores_of`, and the function from the gradients of the scores to those of `raw` and of floating-point arrays.

    Args:
        tile, raw, scale: as in `scores_of`.
        allowed: as returned by `allowed_pairs`. Gradients of masked pairs must be 0.
    """
    floats, rebuild = floats_of(tile)
    return jax.vjp(lambda raw, floats: _modified(rebuild(floats), raw, scale, allowed), raw, floats)


def pairwise_vjp(
    tile: Pieces, query: jax.Array, key: jax.Array, scale: float, allowed: jax.Array | None
) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    """Like `scores_vjp`, for a similarity that is not a dot product: gradients of query, key and the arrays.

    Args:
        tile, scale, allowed: as in `scores_vjp`.
        query: `[batch..., q_heads, q, dim]`, finite in masked rows.
        key: `[batch..., kv_heads, k, dim]`, finite in masked rows.
    """
    floats, rebuild = floats_of(tile)

    def score(query, key, floats):
        tile = rebuild(floats)
        return _modified(tile, pair(tile.similarity, query, key, allowed), scale, allowed)

    return jax.vjp(score, query, key, floats)


def _modified(tile: Pieces, raw: jax.Array, scale: float, allowed: jax.Array | None) -> jax.Array:
    scores = raw if scale == 1.0 else raw * scale
    return modify(scores, tile.scores, tile.query_positions, tile.key_positions, allowed)


def weights_vjp(
    tile: Pieces,
    scores: jax.Array,
    lse: jax.Array,
    shift: jax.Array,
    d_weights: jax.Array,
    allowed: jax.Array | None,
) -> tuple[jax.Array, jax.Array, list[jax.Array] | None]:
    """The weights p of a tile, the gradients of its scores, and those of the normalizer's arrays (None if it has none).

        softmax normalizers:      p_ij = exp(s_ij - lse_i),    ds_ij = p_ij (dp_ij + shift_i)
        elementwise normalizers:  p_ij = activation(s_ij),     ds_ij = activation'(s_ij) dp_ij

    Args:
        tile: the sliced pieces.
        scores: s.
        lse: of the whole row, `[batch..., head, q]`, finite.
        shift: dlse_i - dout_i · out_i, for a softmax.
        d_weights: dp, of the weights before dropout.
        allowed: as returned by `allowed_pairs`.
    """
    if tile.normalizer.streams_as == "softmax":
        exponent = scores - lse[..., None]
        if allowed is not None:
            exponent = where(allowed, exponent, -jnp.inf)
        weights = jnp.exp(exponent)
        d_scores = weights * (d_weights + shift[..., None])
        return weights, d_scores if allowed is None else where(allowed, d_scores, 0), None
    floats, rebuild = floats_of(tile)

    def weigh(scores, floats):
        normalizer, scores = for_normalizer(rebuild(floats).normalizer, scores, allowed)
        return normalizer.activation(scores)

    weights, pull = jax.vjp(weigh, scores, floats)
    if allowed is not None:
        weights, d_weights = where(allowed, weights, 0), where(allowed, d_weights, 0)
    return weights, *pull(d_weights)


class StandIn:
    """Replaces the inputs of masked pairs by those of an allowed pair of the same batch element and head.

    If a head has no allowed pair, one of another head is used. Calling it with an aligned array returns the array with
    replaced entries wherever only masked pairs would see them. With `each`, entries are replaced pair by pair even if
    the array has own axes. No gradient flows to the replacements, nor to anything if no pair at all is allowed.

    Args:
        allowed: booleans of the layout `[batch..., head, query, key]`, size 1 on axes where all entries are the same.
    """

    def __init__(self, allowed: jax.Array):
        self.allowed = allowed
        if 0 in allowed.shape:
            return
        outer = allowed.shape[:-2]
        rows = allowed.any(-1)
        query = jnp.argmax(rows, -1)
        key = jnp.argmax(jnp.take_along_axis(allowed, query[..., None, None], -2)[..., 0, :], -1)
        self.some = rows.any(-1)
        self.places = [_along(axis, size, len(outer)) for axis, size in enumerate(outer)]
        if math.prod(outer) > 1:
            first = jnp.argmax(self.some)
            query, key = (jnp.where(self.some, own, own.reshape(-1)[first]) for own in (query, key))
            other = jnp.unravel_index(first, outer)
            self.places = [jnp.where(self.some, own, one) for own, one in zip(self.places, other, strict=True)]
        self.places += [query, key]

    def __call__(self, array: Any, *, each: bool = False) -> Any:
        if 0 in (*self.allowed.shape, *array.shape):  # nothing to replace
            return array
        rank = self.allowed.ndim
        sizes = array.shape[:rank]
        if max(sizes[-2:]) > 1:
            kept = self.allowed
            for axis in (-2, -1):
                # A query's or key's whole row of a table would be too large to replace for each pair.
                if not each and array.ndim > rank and sizes[axis] == 1:
                    kept = kept.any(axis, keepdims=True)
        elif any(have > 1 and size > 1 for have, size in zip(self.some.shape, sizes, strict=False)):
            kept = self.some[..., None, None]
        else:  # the allowed pair has the same entry
            kept = self.some.any(keepdims=True)[..., None, None]
        other = array if kept.size == 1 else self._entries(array)
        return jnp.where(jnp.expand_dims(kept, range(rank, array.ndim)), array, jax.lax.stop_gradient(other))

    def _entries(self, array: Any) -> Any:
        """The entries of an array that the replacing pairs see, `[batch..., head, 1, 1, own...]`."""
        rank = self.allowed.ndim
        index = []
        for axis, place in enumerate(self.places):
            size = array.shape[axis]
            shared = axis < rank - 2 and self.allowed.shape[axis] == 1
            index.append(np.zeros((), int) if size == 1 else _along(axis, size, rank - 2) if shared else place)
        found = jnp.asarray(array).at[tuple(index)].get(mode="promise_in_bounds")
        own = array.ndim - rank
        found = jax.lax.expand_dims(found, range(rank - 2 - (found.ndim - own)))
        return jnp.expand_dims(found, (rank - 2, rank - 1))


def modify(scores: jax.Array, chain: Sequence[Score], query: Any, key: Any, allowed: jax.Array | None) -> jax.Array:
    """Apply a chain of scores. The results for masked pairs are arbitrary, but finite gradients are guaranteed.

    Args:
        scores: `[batch..., head, q, k]`.
        chain: the scores to apply, aligned.
        query: positions, aligned.
        key: positions, aligned.
        allowed: which pairs may attend, broadcastable to the scores; None for all.
    """
    if allowed is not None:
        allowed = _as_layout(allowed, scores.ndim)
    every = None
    for score in chain:
        if score.finite_at_zero:
            scores = score.modify(scores if allowed is None else where(allowed, scores, 0), query, key)
            continue
        out = None
        if may_be_singular(lambda score, *pair: score.modify(*pair), score, scores, query, key):
            out = jnp.isneginf(jax.lax.stop_gradient(score.modify(scores, query, key)))
            inside = StandIn(~out if allowed is None else allowed & ~out)
        elif allowed is not None:
            inside = every = every or StandIn(allowed)
        else:
            scores = score.modify(scores, query, key)
            continue
        scores = jax.tree.map(inside, score).modify(inside(scores), inside(query), inside(key))
        if out is not None:
            scores = jnp.where(out, -jnp.inf, scores)
    return scores


def pair(similarity: Similarity, query: jax.Array, key: jax.Array, allowed: jax.Array | None) -> jax.Array:
    """`similarity.pair` for allowed pairs; the results for masked pairs are arbitrary.

    A similarity that may be singular is computed pair by pair, with separate inputs: q x k x dim numbers per head.
    """
    if allowed is None or similarity.is_dot or similarity.finite or 0 in (*query.shape, *key.shape):
        return similarity.pair(query, key)
    if not may_be_singular(lambda similarity, *sides: similarity.pair(*sides), similarity, query, key):
        return similarity.pair(query, key)
    rank = query.ndim
    key = jnp.repeat(key, query.shape[-3] // key.shape[-3], axis=-3)
    inside = StandIn(_as_layout(allowed, rank))
    sizes = query.shape[-2], key.shape[-2]

    def one_by_one(array: jax.Array) -> jax.Array:
        """`[batch..., head, q, k, own...]` -> `[q * k, batch..., head, 1, 1, own...]`."""
        array = inside(array, each=True)
        array = jnp.broadcast_to(array, (*array.shape[: rank - 2], *sizes, *array.shape[rank:]))
        array = jnp.moveaxis(array, (rank - 2, rank - 1), (0, 1))
        return jnp.expand_dims(array.reshape(-1, *array.shape[2:]), (rank - 1, rank))

    leaves, tree = jax.tree.flatten(similarity)
    per_pair = [max(leaf.shape[rank - 2 : rank]) > 1 for leaf in leaves]
    leaves = [one_by_one(leaf) if own else inside(leaf) for leaf, own in zip(leaves, per_pair, strict=True)]

    def number(query, key, leaves):  # [batch..., head, 1, 1, dim]
        return jax.tree.unflatten(tree, leaves).pair(query[..., 0, :], key[..., 0, :])[..., 0, 0]

    axes = [0 if own else None for own in per_pair]
    sides = one_by_one(query[..., :, None, :]), one_by_one(key[..., None, :, :])
    numbers = jax.vmap(number, (0, 0, axes))(*sides, leaves)
    return jnp.moveaxis(numbers.reshape(*sizes, *numbers.shape[1:]), (0, 1), (-2, -1))


def for_normalizer(normalizer: Normalizer, scores: jax.Array, allowed: jax.Array | None) -> tuple[Any, jax.Array]:
    """A normalizer and scores at which it can be differentiated, with masked pairs replaced."""
    if allowed is None:
        return normalizer, scores
    allowed = _as_layout(allowed, scores.ndim)
    if normalizer.finite_at_zero:
        return normalizer, where(allowed, scores, 0)
    inside = StandIn(allowed)
    return jax.tree.map(inside, normalizer), inside(scores)


def _along(axis: int, size: int, rank: int) -> np.ndarray:
    return np.arange(size).reshape([size if one == axis else 1 for one in range(rank)])


def _as_layout(allowed: jax.Array, rank: int) -> jax.Array:
    return jax.lax.expand_dims(allowed, range(rank - allowed.ndim))


# --- products of weights and values; a masked pair contributes nothing, even if its value is NaN or inf ---


def grouped_product(weights: jax.Array, values: jax.Array, precision: Any = None) -> jax.Array:
    """`[..., q_heads, q, k]` times `[..., kv_heads, k, d]`: `[..., q_heads, q, d]`, without repeating the values."""
    *batch, q_heads, q_len, k_len = weights.shape
    kv_heads, dim = values.shape[-3], values.shape[-1]
    grouped = weights.reshape(*batch, kv_heads, q_heads // kv_heads * q_len, k_len)
    dtype = accumulation_dtype(values)
    out = jnp.einsum("...hqk,...hkd->...hqd", grouped, values, precision=precision, preferred_element_type=dtype)
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
        return clean + _nonfinite_sums(jnp.broadcast_to(allowed, weights.shape), values)

    if auto_devices(weights, values) > 1:  # a test whether all values are finite would need communication
        return with_nonfinite()
    return jax.lax.cond(jnp.isfinite(values).all(), lambda: clean, with_nonfinite)


def add_values(
    total: Callable[[], jax.Array],
    weights: jax.Array,
    values: Callable[[], jax.Array],
    allowed: Callable[[], jax.Array],
    axes: tuple[str, ...],
) -> jax.Array:
    """`total() + multiply_values(weights, values(), allowed())`, not differentiable, for a loop.

    Values that are NaN or inf are handled in a branch, from functions evaluated there, so that XLA compiles and runs
    fewer operations.

    Args:
        total: `[..., q_heads, q, d]`.
        weights: as in `multiply_values`.
        values: as in `multiply_values`.
        allowed: as in `multiply_values`.
        axes: the mesh axes over which the result varies.
    """
    tile = values()
    weights = weights.astype(tile.dtype)

    def with_nonfinite():
        # Sliced again, and kept apart, so that XLA compiles fewer operations.
        tile = jax.lax.optimization_barrier(values())
        clean = grouped_product(weights, without_nonfinite(tile))
        return vary(total() + clean + _nonfinite_sums(jnp.broadcast_to(allowed(), weights.shape), tile), axes)

    if auto_devices(weights, tile) > 1:  # the test below would need communication
        return with_nonfinite()
    product = grouped_product(weights, tile)
    # Each NaN or inf of the tile reaches the product, as 0 * NaN is NaN. So does a NaN among the weights, and this sum
    # may overflow; the branch is right for both.
    finite = jnp.isfinite(jnp.sum(product))
    return jax.lax.cond(finite, lambda: vary(total() + product, axes), with_nonfinite)


def _nonfinite_sums(reach: jax.Array, values: jax.Array) -> jax.Array:
    """The sums over the pairs in `reach` of values that are NaN or inf: 0, inf, -inf or NaN, `[..., q_heads, q, d]`."""
    dtype = accumulation_dtype(values)

    def count(kinds):
        # A matrix unit that rounds to bfloat16 would lose the 1 of `unit + 1` below.
        return grouped_product(reach.astype(dtype), kinds.astype(dtype), precision="highest")

    above, below = ~(values < jnp.inf), ~(values > -jnp.inf)  # +inf and -inf; NaN counts as both: inf - inf
    unit = 4096
    if is_static(reach.shape[-1]) and reach.shape[-1] < unit:  # one product counts both, exactly
        both = count(above + float(unit) * below)
        below = jnp.floor(both / unit)
        above = both - unit * below
    else:
        above, below = count(above), count(below)
    return (jnp.where(above > 0, jnp.inf, 0.0) - jnp.where(below > 0, jnp.inf, 0.0)).astype(dtype)

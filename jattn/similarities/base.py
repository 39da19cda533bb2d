"""A similarity gives every (query, key) pair its number."""

import abc
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from ..foundation.pieces import Piece
from ..scores.base import Score


class Prepared(NamedTuple):
    """What a similarity makes of the whole query and key, once, before any tile is visited.

    query: `[batch..., q_len, q_heads, dim]`
    key: `[batch..., kv_len, kv_heads, dim]`
    scale: a static factor of the pair's number, applied in float32.
    scores: scores that belong to the similarity (a bias per key, a learned scale), applied before the caller's.
    """

    query: jax.Array
    key: jax.Array
    scale: float = 1.0
    scores: tuple[Score, ...] = ()


class Similarity(Piece, abc.ABC):
    """From a query and a key to a number: `scale * pair(query, key)`, then the prepared scores.

    `prepare` sees the arrays whole, in plain differentiable JAX. `pair` sees a tile. A similarity that is a dot
    product in disguise only prepares, and so runs on every dot-product kernel; one that is not (`is_dot = False`)
    overrides `pair`, which is then computed tile by tile.
    """

    is_dot: ClassVar[bool] = True  # `pair` is `grouped_dot`
    finite: ClassVar[bool] = False  # True where `pair` and its derivatives are finite for finite arrays
    rewrites_key: ClassVar[bool] = True  # False where `prepare` returns the very key it was given

    @abc.abstractmethod
    def prepare(self, query: jax.Array, key: jax.Array) -> Prepared:
        """Rewrite the arrays (shapes as in the front door, any number of batch axes) to what `pair` takes."""

    def pair(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """Numbers `[batch..., q_heads, q, k]` of a tile, float32 (float64 for float64 arrays).

        Args:
            query: `[batch..., q_heads, q, dim]`.
            key: `[batch..., kv_heads, k, dim]`; consecutive groups of query heads share a key head.
        """
        return grouped_dot(query, key)


def accumulation_dtype(*arrays: jax.Array) -> jnp.dtype:
    """float64 if any array is, else float32."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def folded_scale(similarity: Similarity, query: jax.Array, scale: float) -> tuple[jax.Array, float]:
    """The query times the scale where that is the same and its precision allows, and the factor left for the scores.

    Before the product rather than after it, the scale keeps large products from overflowing.
    """
    if similarity.is_dot and query.dtype == accumulation_dtype(query):
        return query * scale, 1.0
    return query, scale


def grouped_dot(query: jax.Array, key: jax.Array) -> jax.Array:
    """`[..., q_heads, q, d]` with `[..., kv_heads, k, d]` -> `[..., q_heads, q, k]`, without repeating the keys."""
    *batch, q_heads, q_len, dim = query.shape
    kv_heads, k_len = key.shape[-3:-1]
    grouped = query.reshape(*batch, kv_heads, q_heads // kv_heads * q_len, dim)
    out = jnp.einsum("...hqd,...hkd->...hqk", grouped, key, preferred_element_type=accumulation_dtype(query, key))
    return out.reshape(*batch, q_heads, q_len, k_len)

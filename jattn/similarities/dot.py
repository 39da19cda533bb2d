"""Similarities, which give each (query, key) pair its score, and dot products: plain, scaled (the default), cosine."""

import abc
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from ..foundation.fields import Numbers, parameter, set_field
from ..foundation.numerics import accumulation_dtype, unit
from ..foundation.pieces import Piece, number, piece
from ..scores.base import Score
from ..scores.scale import Scale
from .finite import finite_query


class Prepared(NamedTuple):
    """A query and key as `Similarity.pair` takes them, prepared once for the whole call.

    query: `[batch..., q_len, q_heads, dim]`
    key: `[batch..., kv_len, kv_heads, dim]`
    scale: a static factor of all scores, applied in float32 (float64 in float64).
    scores: scores that are part of the similarity (a bias per key, a learned scale), applied before the caller's.
    """

    query: jax.Array
    key: jax.Array
    scale: float = 1.0
    scores: tuple[Score, ...] = ()


class Similarity(Piece, abc.ABC):
    """Gives each (query, key) pair its score: `scale * pair(query, key)`, then the scores in `Prepared.scores`.

    To add a similarity, subclass `Similarity`, decorate the class with `@piece`, and implement `prepare`, which
    transforms the whole query and key once, in plain differentiable JAX. If the score is a dot product of the
    transformed arrays plus terms per query or per key, that is all, and it runs on every dot-product kernel. The
    Gaussian score, for example, is `-γ‖q - k‖² = 2γ q·k - γ‖k‖² - γ‖q‖²`. For any other score set `is_dot = False` and
    override `pair`, which is called tile by tile. The kernel for TPUs runs such a score only if it is a sum over
    features of an elementwise function, which it adds up feature by feature.

    Attributes:
        is_dot: whether `pair` is the dot product (`grouped_dot`).
        finite: whether `pair` and its derivatives are finite for all finite inputs.
        rewrites_key: whether `prepare` changes the key. If False, the caller's own key array is used.

    >>> import jax, jax.numpy as jnp, jattn
    >>> from jattn.foundation.pieces import array, piece
    >>> @piece
    ... class Weighted(jattn.similarities.Similarity):
    ...     "Σ_d weight_d q_d k_d."
    ...
    ...     weight: jax.Array = array("dim")
    ...     rewrites_key = False
    ...
    ...     def prepare(self, query, key):
    ...         return jattn.similarities.Prepared(query * self.weight, key)
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (10, 2, 4)) for i in range(3))
    >>> jattn.attention(q, k, v, similarity=Weighted(jnp.arange(4.0))).shape
    (10, 2, 4)
    """

    is_dot: ClassVar[bool] = True
    finite: ClassVar[bool] = False
    rewrites_key: ClassVar[bool] = True

    @abc.abstractmethod
    def prepare(self, query: jax.Array, key: jax.Array) -> Prepared:
        """Transform the whole arrays for `pair`.

        Args:
            query: `[batch..., q_len, q_heads, qk_dim]`.
            key: `[batch..., kv_len, kv_heads, qk_dim]`.

        Returns:
            `Prepared`; the feature size of its arrays is free.
        """

    def pair(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """The scores of a tile, `[batch..., q_heads, q, k]`, by default dot products; float32 (float64 in float64).

        Args:
            query: `[batch..., q_heads, q, dim]`, prepared.
            key: `[batch..., kv_heads, k, dim]`, prepared. Consecutive query heads share a key head.
        """
        return grouped_dot(query, key)


def folded_scale(similarity: Similarity, query: jax.Array, scale: float) -> tuple[jax.Array, float]:
    """Multiply the query by the scale if that is exact enough; returns the query and the factor left for the scores.

    Scaling before the product instead of after it keeps large products from overflowing. It is done for dot products
    whose query already has the accumulation dtype; in a 16-bit dtype it would round.
    """
    if similarity.is_dot and query.dtype == accumulation_dtype(query):
        return query * scale, 1.0
    return query, scale


def grouped_dot(query: jax.Array, key: jax.Array) -> jax.Array:
    """Dot products `[..., q_heads, q, k]` of `[..., q_heads, q, d]` and `[..., kv_heads, k, d]`; no key is repeated."""
    *batch, q_heads, q_len, dim = query.shape
    kv_heads, k_len = key.shape[-3:-1]
    grouped = query.reshape(*batch, kv_heads, q_heads // kv_heads * q_len, dim)
    out = jnp.einsum("...hqd,...hkd->...hqk", grouped, key, preferred_element_type=accumulation_dtype(query, key))
    return out.reshape(*batch, q_heads, q_len, k_len)


def static_or_score(factor: Numbers) -> tuple[float, tuple[Score, ...]]:
    """Split a factor for `Prepared`: a Python number is its static `scale`, an array a differentiable `Scale` score."""
    return (factor, ()) if isinstance(factor, (int, float)) else (1.0, (Scale(factor),))


@piece
class Dot(Similarity):
    """scale * q·k, the plain dot product by default.

    Args:
        scale: a number, or a floating-point array `[batch..., heads]` with one per query head.

    Raises:
        ValueError: `scale` is not a floating-point number or array, or is known to be not finite.

    >>> import jax, jattn
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (10, 2, 4)) for i in range(3))
    >>> jattn.attention(q, k, v, similarity=jattn.similarities.Dot(0.1)).shape
    (10, 2, 4)
    """

    scale: Numbers = number("head", default=1.0)
    rewrites_key = False

    def __post_init__(self):
        set_field(self, "scale", parameter("scale", self.scale))

    def prepare(self, query, key):
        return Prepared(query, key, *static_or_score(self.scale))


@piece
class ScaledDot(Similarity):
    """q·k / √qk_dim (Vaswani et al. 2017, arXiv:1706.03762). The default similarity.

    For independent queries and keys of unit variance per feature, the scores have unit variance too.

    >>> import jax, jattn
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (10, 2, 4)) for i in range(3))
    >>> jattn.attention(q, k, v, similarity=jattn.similarities.ScaledDot()).shape
    (10, 2, 4)
    """

    rewrites_key = False

    def prepare(self, query, key):
        return Prepared(query, key, query.shape[-1] ** -0.5)


@piece
class Cosine(Similarity):
    """Cosine similarity, q·k / (‖q‖ ‖k‖ temperature) (Graves et al. 2014, arXiv:1410.5401).

    A zero vector has similarity 0 to everything, with zero gradient. Vectors are normalized in float32 (float64 for
    float64 inputs), without overflow or underflow.

    Args:
        temperature: a number above 0, or a floating-point array `[batch..., heads]` with one per query head.

    Raises:
        ValueError: `temperature` is not a floating-point number or array, or is known to be not finite or not above 0.

    >>> import jax, jattn
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (10, 2, 4)) for i in range(3))
    >>> jattn.attention(q, k, v, similarity=jattn.similarities.Cosine(0.1)).shape
    (10, 2, 4)
    """

    temperature: Numbers = number("head", default=1.0)

    def __post_init__(self):
        set_field(self, "temperature", parameter("temperature", self.temperature, above=0))

    def prepare(self, query, key):
        query, poison = finite_query(query)
        scale, scores = static_or_score(1 / self.temperature)
        return Prepared(unit(query), unit(key), scale, (*scores, poison))

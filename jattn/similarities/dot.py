"""Dot products: plain, scaled, and cosine."""

from ..foundation.fields import Numbers, parameter, set_field
from ..foundation.numerics import unit
from ..foundation.pieces import number, piece
from ..scores.base import Score
from ..scores.scale import Scale
from .base import Prepared, Similarity
from .finite import finite_query


def static_or_score(factor: Numbers) -> tuple[float, tuple[Score, ...]]:
    """Split a factor for `Prepared`: a Python number is its static `scale`, an array a differentiable `Scale` score."""
    return (factor, ()) if isinstance(factor, (int, float)) else (1.0, (Scale(factor),))


@piece
class Dot(Similarity):
    """scale * q·k.

    Args:
        scale: a number, or a floating-point array `[batch..., heads]` with one per query head.

    Raises:
        ValueError: `scale` is not a finite floating-point number or array.

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
        ValueError: `temperature` is not above 0.

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

"""Biases: a number added to the score of each pair, or to all scores of a head."""

import jax
import numpy as np

from ..foundation.fields import Numbers, floats, parameter, set_field
from ..foundation.pieces import array, number, piece
from .base import Score


@piece
class Bias(Score):
    """score + values, with one value per pair.

    Added after the similarity's scale and without clipping, in the dtype of the scores (float32, or float64). A pair
    with -inf is excluded like a masked one, and so is a row in which all pairs have -inf. Only a mask makes tiles be
    skipped, however, and a soft cap that is applied later makes -inf finite again.

    Args:
        values: floating-point `[batch..., heads, q_len, kv_len]`, with size 1 on shared axes.

    Raises:
        ValueError: `values` is boolean or integer, or has fewer than three axes.

    >>> import jax, jattn
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (10, 2, 4)) for i in range(3))
    >>> per_key = jattn.scores.Bias(jax.random.normal(jax.random.key(3), (1, 1, 10)))
    >>> jattn.attention(q, k, v, scores=per_key).shape
    (10, 2, 4)
    """

    values: jax.Array | np.ndarray = array("head", "query", "key")
    finite_at_zero = True

    def __post_init__(self):
        remedy = "Booleans that say who may attend are `mask=jattn.masks.Dense(array)`."
        set_field(self, "values", floats("values", self.values, ("head", "query", "key"), remedy=remedy))

    def modify(self, scores, query, key):
        del query, key
        return scores + self.values.astype(scores.dtype)


@piece
class Shift(Score):
    """score + amount, with one amount per head.

    It cancels in a plain softmax, but not in a sigmoid, with a sink, or under a soft cap.

    Args:
        amount: a number, or a floating-point array `[batch..., heads]`.

    Raises:
        ValueError: `amount` is not a finite floating-point number or array.

    >>> import jax.numpy as jnp
    >>> from jattn import scores
    >>> print(scores.Shift(-1.0).modify(jnp.array([1.0, 0.5]), jnp.array(0), jnp.arange(2)))
    [ 0.  -0.5]
    """

    amount: Numbers = number("head")
    finite_at_zero = True

    def __post_init__(self):
        set_field(self, "amount", parameter("amount", self.amount))

    def modify(self, scores, query, key):
        del query, key
        return scores + (self.amount if isinstance(self.amount, (int, float)) else self.amount.astype(scores.dtype))

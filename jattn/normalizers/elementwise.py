"""Weights that depend on their own score alone: sigmoid and ReLU attention."""

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.pieces import number, piece
from ..scores.arguments import Numbers, parameter, set_field
from ..scores.bias import Shift
from .base import Normalizer


@piece
class Sigmoid(Normalizer):
    """sigmoid(score + bias) (Ramapuram et al. 2024, arXiv:2409.04431). Rows do not sum to 1.

    The paper starts the bias at -log n, n the number of keys, so that rows begin near the sum 1. Nothing is divided.

    Args:
        bias: a number, or a floating-point array `[batch..., head]`.

    Raises:
        ValueError: `bias` is not a finite floating-point number or array.

    >>> import math, jax, jattn
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (10, 2, 4)) for i in range(3))
    >>> jattn.attention(q, k, v, normalizer=jattn.normalizers.Sigmoid(bias=-math.log(10))).shape
    (10, 2, 4)
    """

    bias: Numbers = number("head", default=0.0)
    streams_as = "elementwise"
    finite_at_zero = True

    def __post_init__(self):
        set_field(self, "bias", parameter("bias", self.bias))

    def extra_scores(self):
        static = isinstance(self.bias, (int, float))
        return () if static and self.bias == 0 else (Shift(self.bias),)

    def weights(self, scores, allowed):
        return jnp.where(allowed, jax.nn.sigmoid(jnp.where(allowed, scores, 0)), 0)

    def activation(self, scores):
        return jax.nn.sigmoid(scores)


@piece
class ReLU(Normalizer):
    """max(score, 0) / n^power, n the number of keys that the query may attend (Wortsman et al. 2023, arXiv:2309.08586).

    The paper divides by the sequence length; under a mask it is here the row's own number of keys.

    Args:
        power: a Python number of at least 0; the paper finds 1 to work best.

    Raises:
        ValueError: `power` is not a finite Python number of at least 0.

    >>> import jax, jattn
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (10, 2, 4)) for i in range(3))
    >>> jattn.attention(q, k, v, normalizer=jattn.normalizers.ReLU()).shape
    (10, 2, 4)
    """

    power: float = 1.0
    streams_as = "elementwise"
    finite_at_zero = True

    def __post_init__(self):
        if not isinstance(self.power, (int, float)) or isinstance(self.power, bool) or not 0 <= self.power < np.inf:
            raise ValueError(f"`power` must be a Python number of at least 0; got {self.power!r}.")
        set_field(self, "power", float(self.power))

    def weights(self, scores, allowed):
        count = jnp.maximum(allowed.sum(-1, keepdims=True), 1).astype(scores.dtype)
        return jnp.where(allowed, jax.nn.relu(jnp.where(allowed, scores, 0)), 0) * count**-self.power

    def activation(self, scores):
        return jax.nn.relu(scores)

    def rescale(self, out, lse, remainder=0.0):
        del remainder  # of the log of a count it is less than rounding
        empty = jnp.isneginf(lse)
        return out * jnp.where(empty, 0, jnp.exp(-self.power * jnp.where(empty, 0, lse)))[..., None]

"""Normalizers whose weights depend on their own score alone: sigmoid and ReLU attention."""

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.fields import Numbers, parameter, set_field
from ..foundation.pieces import number, piece
from ..scores.bias import Shift
from .softmax import Normalizer


@piece
class Sigmoid(Normalizer):
    """sigmoid(score + bias): each weight on its own, so rows do not sum to 1 (Ramapuram et al. 2024, arXiv:2409.04431).

    The paper initializes the bias to -log n for n keys, so that rows start with a sum of about 1.

    Args:
        bias: a number, or a floating-point array `[batch..., heads]`.

    Raises:
        ValueError: `bias` is not a floating-point number or array, or is known to be not finite.

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
    """max(score, 0) / n^power, with n the number of keys that the query may attend to.

    Wortsman et al. 2023 (arXiv:2309.08586) divide by the sequence length, which is the same without a mask. Rows do not
    sum to 1.

    Args:
        power: a Python number of at least 0. The paper finds that 1 works best.

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
        del remainder  # negligible: here `lse` is the log of a count
        empty = jnp.isneginf(lse)
        return out * jnp.where(empty, 0, jnp.exp(-self.power * jnp.where(empty, 0, lse)))[..., None]

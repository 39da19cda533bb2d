"""Feature maps φ such that exp(q·k), or another kernel, is equal or close to φ(q)·φ(k)."""

import abc
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...foundation.arguments import check_flags
from ...foundation.arrays import known_values
from ...foundation.pieces import Piece, array, piece
from ...foundation.shapes import check_shapes
from ...ops.attention.call import check_positions


class FeatureMap(Piece):
    """A map φ of queries and keys, `[..., length, heads, dim] -> [..., length, heads, features]`.

    To add a feature map, subclass `FeatureMap`, decorate the class with `@piece`, and implement `query`; `key` if keys
    have another map; and `log_scale` if features could overflow. Weights that may be negative need `nonnegative =
    False`. Arrays in its fields are leaves, as in every piece.

    >>> import jax.numpy as jnp
    >>> from jattn.foundation.pieces import piece
    >>> from jattn.variants.kernelized import FeatureMap, kernelized_attention
    >>> @piece
    ... class Square(FeatureMap):
    ...     "φ(x) = x², so that no weight is negative."
    ...
    ...     def query(self, x, positions):
    ...         return x**2
    >>> x = jnp.ones((5, 2, 4))
    >>> out, state = kernelized_attention(x, x, x, Square())
    >>> out.shape
    (5, 2, 4)
    """

    nonnegative = True
    """Whether no weight φ(q)·φ(k) is below 0, so that weights can be normalized."""

    @abc.abstractmethod
    def query(self, x: jax.Array, positions: Any) -> jax.Array:
        """φ of queries at `positions [..., length]`."""

    def key(self, x: jax.Array, positions: Any) -> jax.Array:
        """φ of keys; by default the same as for queries."""
        return self.query(x, positions)

    def log_scale(self, x: jax.Array) -> jax.Array | None:
        """c for each key, `[..., length, heads]`: `key` returns φ exp(-c). None if the features need no stabilizer.

        Sums over keys with different c rescale them to a common one.
        """
        del x
        return None


@piece
class ELU(FeatureMap):
    """φ(x) = elu(x) + 1 (Katharopoulos et al. 2020, arXiv:2006.16236): x + 1 above 0, exp(x) below.

    >>> import jax.numpy as jnp
    >>> [f"{feature:.2f}" for feature in ELU().query(jnp.array([-1.0, 0.0, 2.0]), None)]
    ['0.37', '1.00', '3.00']
    """

    def query(self, x, positions):
        del positions
        # Not elu(x) + 1, which rounds exp(x) to 0 for very negative x.
        return jnp.where(x > 0, x + 1, jnp.exp(jnp.minimum(x, 0)))


@piece
class Cosine(FeatureMap):
    """cosFormer: φ(x_i) = [relu(x_i) cos(π i / 2M), relu(x_i) sin(π i / 2M)] (Qin et al. 2022, arXiv:2202.08791).

    The weight of a pair is thus relu(q_i)·relu(k_j) cos(π (i - j) / 2M), which favors nearby keys. All features may be
    0 (a query without weights gets 0). Weights are nonnegative as long as |i - j| ≤ M.

    Args:
        max_len: M, at least the length. Positions outside [0, M] raise where they are known, and give NaN where they
            are traced.

    Raises:
        ValueError: `max_len` is not a positive int; at the call, a position is known to be outside [0, M].

    >>> import jax.numpy as jnp
    >>> Cosine(8).query(jnp.ones((5, 2, 4)), jnp.arange(5)).shape
    (5, 2, 8)
    """

    max_len: int

    def __post_init__(self):
        if not isinstance(self.max_len, int) or isinstance(self.max_len, bool) or self.max_len < 1:
            raise ValueError(f"`max_len` must be a positive int; got {self.max_len!r}.")

    def query(self, x, positions):
        known = known_values(positions)
        if known is not None and known.size and not 0 <= known.min() <= known.max() <= self.max_len:
            raise ValueError(
                f"`positions` must be in [0, max_len] with max_len = {self.max_len} (weights of pairs further apart "
                f"are negative); got {known.min()} to {known.max()}. Give a larger `max_len`."
            )
        positions = jnp.asarray(positions)
        inside = (positions >= 0) & (positions <= self.max_len)
        angle = (positions * (math.pi / 2 / self.max_len)).astype(x.dtype)
        angle = jnp.where(inside, angle, jnp.nan)[..., None, None]
        x = jax.nn.relu(x)
        return jnp.concatenate([x * jnp.cos(angle), x * jnp.sin(angle)], -1)


@piece
class Taylor(FeatureMap):
    """Based: φ(x) = [1, x', x'⊗x' / √2], x' = x / dim^¼ (Arora et al. 2024, arXiv:2402.18668).

    φ(q)·φ(k) = 1 + s + s²/2 with s = q·k / √dim: the second-order Taylor polynomial of exp(s), at least 1/2, though
    features may be negative. It has 1 + dim + dim² features: project to a small dim, such as 16, first.

    >>> import jax.numpy as jnp
    >>> Taylor().query(jnp.ones((5, 2, 4)), None).shape
    (5, 2, 21)
    """

    def query(self, x, positions):
        del positions
        x = x * x.shape[-1] ** -0.25
        pairs = (x[..., :, None] * x[..., None, :]).reshape(*x.shape[:-1], x.shape[-1] ** 2) / math.sqrt(2)
        return jnp.concatenate([jnp.ones_like(x[..., :1]), x, pairs], -1)


@piece
class Learned(FeatureMap):
    """Hedgehog: φ(x) = [softmax(Wx + b), softmax(-Wx - b)] (Zhang et al. 2024, arXiv:2402.04347).

    The paper's stable form of [exp(Wx), exp(-Wx)]: each half is normalized over its features. W is initialized to the
    identity.

    Args:
        kernel: `[heads, dim, features]`, for queries.
        bias: `[heads, features]`, for queries.
        key_kernel: the kernel for keys.
        key_bias: the bias for keys.

    Raises:
        ValueError: at the call, the arrays do not match the heads and dim, or one another.

    >>> import jax.numpy as jnp
    >>> kernel, bias = jnp.stack([jnp.eye(4)] * 2), jnp.zeros((2, 4))
    >>> Learned(kernel, bias, kernel, bias).query(jnp.ones((5, 2, 4)), None).shape
    (5, 2, 8)
    """

    kernel: jax.Array | np.ndarray = array("head", "dim", "feature")
    bias: jax.Array | np.ndarray = array("head", "feature")
    key_kernel: jax.Array | np.ndarray = array("head", "dim", "feature")
    key_bias: jax.Array | np.ndarray = array("head", "feature")

    def query(self, x, positions):
        del positions
        return _both(x, self.kernel, self.bias)

    def key(self, x, positions):
        del positions
        return _both(x, self.key_kernel, self.key_bias)


def _both(x: jax.Array, kernel: Any, bias: Any) -> jax.Array:
    heads, dim = x.shape[-2:]
    known = {"heads": heads, "dim": dim}
    check_shapes(known, kernel=(kernel, "heads dim features"), bias=(bias, "heads features"))
    made = jnp.einsum("...hd,hdf->...hf", x, kernel.astype(x.dtype)) + bias.astype(x.dtype)
    return jnp.concatenate([jax.nn.softmax(made, -1), jax.nn.softmax(-made, -1)], -1)


@piece
class Function(FeatureMap):
    """Any function as a feature map, the same for queries and keys.

    Args:
        function: `[..., dim] -> [..., features]`.
        nonnegative: asserts that no weight φ(q)·φ(k) is negative, for example because no feature is. It is not checked.
            Without it, weights cannot be normalized.

    Raises:
        ValueError: `function` is not callable; `nonnegative` is not a flag; at the call, the function changes other
            axes than the last.

    >>> import jax, jax.numpy as jnp
    >>> print(Function(jax.nn.relu, nonnegative=True).query(jnp.array([-1.0, 2.0]), None))
    [0. 2.]
    """

    function: Callable[[jax.Array], jax.Array]
    nonnegative: bool = False

    def __post_init__(self):
        if not callable(self.function):
            raise ValueError(f"`function` must be a function of an array [..., dim]; got {self.function!r}.")
        check_flags(nonnegative=self.nonnegative)

    def query(self, x, positions):
        del positions
        made = self.function(x)
        if jnp.shape(made)[:-1] != x.shape[:-1] or jnp.ndim(made) != x.ndim:
            raise ValueError(
                f"`function` must make [..., features] of [..., dim]; of {x.shape} it made {jnp.shape(made)}."
            )
        return made


def check_feature_map(features: Any, normalize: bool) -> None:
    """Check that `features` is a feature map, and that its weights can be normalized if they must be.

    Raises:
        ValueError: it is not; the message says what to do.
    """
    if not isinstance(features, FeatureMap):
        raise ValueError(
            f"`features` must be a feature map of `jattn.variants.kernelized`, such as `ELU()`; got {features!r}."
        )
    if normalize and not features.nonnegative:
        raise ValueError(
            f"`features` may be negative ({type(features).__name__}), and so may the sum that normalizes: give "
            "`normalize=False`, or a map whose products are not (`Function(f, nonnegative=True)` is a promise of it)."
        )


def check_at(positions: Any, batch: tuple[int, ...], length: int, of: str) -> Any:
    """The positions of a call, by default 0, 1, ..."""
    if positions is None:
        return np.arange(length)
    positions = positions if isinstance(positions, jax.Array) else np.asarray(positions)
    check_positions("positions", positions, batch, length, of)
    return positions

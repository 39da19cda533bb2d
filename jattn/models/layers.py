"""What families share and neither `jattn.nnx` nor Flax has: activations by name, norms, feed-forward layers, checks."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..foundation.arguments import check_choice
from ..foundation.arrays import as_array, describe, dtype_of, known_values
from ..foundation.numerics import widen
from ..foundation.sharding import mesh_axes
from ..layers.norms import rms_norm
from ..masks import Mask, from_attention_mask
from ..masks.base import restricted
from ..ops.attention.call import renamed
from ..positions import from_attention_mask as positions_of

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}
"""Activations, as `config.json` names them. "gelu" is the exact function x Φ(x) (Hendrycks & Gimpel 2016,
arXiv:1606.08415), whereas `jax.nn.gelu` is by default the approximation by tanh, "gelu_new" here."""
ACTIVATIONS |= dict.fromkeys(("gelu_pytorch_tanh", "gelu_fast", "gelu_python_tanh"), ACTIVATIONS["gelu_new"])
ACTIVATIONS |= {"gelu_python": ACTIVATIONS["gelu"], "swish": ACTIVATIONS["silu"]}


class Fixed(nnx.Variable):
    """An array that checkpoints hold, and that is not trained."""


def check_activation(name: Any) -> None:
    """Check that an activation is known by this name.

    Raises:
        ValueError: it is not.
    """
    check_choice("activation", name, tuple(ACTIVATIONS))


@functools.cache
def normal(deviation: float) -> Any:
    """The initializer from a normal distribution. Layers with the same one compare equal.

    It is compiled, so that a model that is traced for its shapes traces it once for each shape.
    """
    return jax.jit(nnx.initializers.normal(deviation), static_argnames=("shape", "dtype"))


def layer_norm(features: int, epsilon: float, **options: Any) -> nnx.LayerNorm:
    """Flax's layer norm, with the variance from centered numbers: mean(x²) - mean(x)² would lose digits."""
    return nnx.LayerNorm(features, epsilon=epsilon, use_fast_variance=False, **options)


class RMSNorm(nnx.Module):
    """x / √(mean(x²) + ε) * g, in float32 (Zhang & Sennrich 2019, arXiv:1910.07467).

    Args:
        features: the size of the last axis.
        epsilon: ε.
        zero_centered: whether the parameter is g - 1, as in Gemma (arXiv:2403.08295).
        dtype: the dtype of the result, by default that of x and g together.
        param_dtype: the dtype of the parameter.
        rngs: not used: the parameter is not random. Norms take the same options as other layers.
    """

    def __init__(
        self,
        features: int,
        epsilon: float = 1e-6,
        *,
        zero_centered: bool = False,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        first = jnp.zeros if zero_centered else jnp.ones
        self.scale = nnx.Param(first((features,), param_dtype))
        self.epsilon, self.zero_centered, self.dtype = epsilon, zero_centered, dtype
        del rngs

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalize the last axis."""
        scale = self.scale[...]
        dtype = jnp.promote_types(x.dtype, scale.dtype) if self.dtype is None else self.dtype
        if self.zero_centered:
            scale = widen(scale) + 1
        return rms_norm(widen(x), scale, self.epsilon).astype(dtype)


class FeedForward(nnx.Module):
    """A feed-forward layer, which may be told how its batch is split over devices.

    Attributes:
        batch: the sharding of the first axis of its inputs; None for any.
    """

    batch: jax.sharding.NamedSharding | None = None

    def placed(self, x: jax.Array) -> jax.Array:
        """The inputs, split as they should be.

        Raises:
            ValueError: devices do not divide the batch.
        """
        if self.batch is None:
            return x
        parts = math.prod(self.batch.mesh.shape[axis] for axis in mesh_axes(*self.batch.spec))
        if x.shape[0] % parts:
            raise ValueError(
                f"the batch must be a multiple of the {parts} devices on the mesh axes {self.batch.spec[0]!r} that "
                f"split it; got {x.shape[0]}."
            )
        return jax.lax.with_sharding_constraint(x, self.batch)


class MLP(FeedForward):
    """The feed-forward layer of a block: down(activation(up(x))), or down(activation(gate(x)) * up(x)).

    The gated form is that of Shazeer 2020 (arXiv:2002.05202).

    Args:
        features: features of inputs and outputs.
        hidden: features in between.
        activation: a name in `ACTIVATIONS`.
        gated: whether there is a gate.
        use_bias: whether projections add a bias.
        dropout_rate: the dropout rate of what `down` takes, in training.
        kernel_init, out_kernel_init: initializers, the second of the last projection.
        options: `dtype`, `param_dtype` and `rngs`.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        activation: str,
        *,
        gated: bool = False,
        use_bias: bool = True,
        dropout_rate: float = 0.0,
        kernel_init: Any = nnx.initializers.lecun_normal(),
        out_kernel_init: Any = None,
        **options: Any,
    ):
        check_activation(activation)
        linear = functools.partial(nnx.Linear, use_bias=use_bias, **options)
        self.up = linear(features, hidden, kernel_init=kernel_init)
        self.gate = linear(features, hidden, kernel_init=kernel_init) if gated else None
        self.down = linear(hidden, features, kernel_init=out_kernel_init or kernel_init)
        self.dropout = dropout(dropout_rate, options["rngs"])
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., features]` -> `[..., features]`."""
        x = self.placed(x)
        activate = ACTIVATIONS[self.activation]
        if self.gate is None:
            return self.down(self.dropout(activate(self.up(x))))
        return self.down(self.dropout(activate(self.gate(x)) * self.up(x)))


def dropout(rate: float, rngs: nnx.Rngs) -> nnx.Dropout:
    """Dropout that is off until `model.train()`; without a random stream if the rate is 0."""
    return nnx.Dropout(rate, deterministic=True, rngs=rngs if rate else None)


def checked_tokens(name: str, tokens: Any, vocabulary: int, longest: int | None = None) -> jax.Array:
    """Tokens as an integer array `[..., length]`.

    Args:
        name: the name of the argument.
        tokens: integers `[..., length]`.
        vocabulary: tokens are below it. Checked where values are known.
        longest: the largest length.

    Raises:
        ValueError: they are not such an array, or are out of range; there are too many.

    >>> checked_tokens("tokens", [[3, 11]], vocabulary=11)
    Traceback (most recent call last):
    ...
    ValueError: `tokens` must be in [0, 11), the vocabulary of the model; got 3 to 11.
    """
    tokens = as_array(tokens)
    dtype = dtype_of(tokens)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer) or not tokens.ndim:
        raise ValueError(f"`{name}` must be integers [..., length]; got {describe(tokens)}.")
    if not tokens.shape[-1]:
        raise ValueError(f"`{name}` must have at least one token; got an array of shape {tuple(tokens.shape)}.")
    if longest is not None and tokens.shape[-1] > longest:
        raise ValueError(f"`{name}` must be at most {longest} long, the positions of the model; got {tokens.shape}.")
    known = known_values(tokens)
    if known is not None and known.size and (known.min() < 0 or known.max() >= vocabulary):
        raise ValueError(
            f"`{name}` must be in [0, {vocabulary}), the vocabulary of the model; got {known.min()} to {known.max()}."
        )
    return jnp.asarray(tokens)


def checked_next(tokens: Any, vocabulary: int) -> jax.Array:
    """One token of each sequence, `[...]`, as an integer array `[..., 1]`.

    Raises:
        ValueError: they are not integers, or are out of range.

    >>> checked_next([3, 1], vocabulary=11).shape
    (2, 1)
    """
    found = as_array(tokens) if isinstance(tokens, list | tuple) else tokens
    if dtype_of(np.asarray(found) if isinstance(found, int) else found) is None:
        raise ValueError(f"`tokens` must be integers, one for each sequence; got {describe(tokens)}.")
    return checked_tokens("tokens", jnp.asarray(found)[..., None], vocabulary)


def padding_of(attention_mask: Any, tokens: jax.Array, name: str = "attention_mask") -> tuple[Mask, Any]:
    """The mask of a padded batch, and the positions of its tokens, counted from 0 in each sequence.

    Args:
        attention_mask: ones and zeros `[..., length]`.
        tokens: integers `[..., length]`.
        name: the name of the argument.

    Raises:
        ValueError: it does not have the shape of the tokens; values are neither 0 nor 1.
    """
    attention_mask = as_array(attention_mask)
    if dtype_of(attention_mask) is None or tuple(attention_mask.shape) != tuple(tokens.shape):
        raise ValueError(
            f"`{name}` must be ones and zeros of the shape {tuple(tokens.shape)} of the tokens; got "
            f"{describe(attention_mask)}."
        )
    with renamed(attention_mask=name):
        return from_attention_mask(attention_mask), positions_of(attention_mask)


def checked_positions(positions: Any, tokens: jax.Array, longest: int | None = None) -> Any:
    """Positions `[length]` or `[..., length]`, one for each token.

    Args:
        positions: integers.
        tokens: integers `[..., length]`.
        longest: positions are below it. Checked where values are known.

    Raises:
        ValueError: they are not such an array, or are out of range.
    """
    positions = as_array(positions)
    dtype = dtype_of(positions)
    shapes = (tuple(tokens.shape), tuple(tokens.shape[-1:]))
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer) or tuple(positions.shape) not in shapes:
        wanted = " or ".join(map(str, dict.fromkeys(shapes)))
        raise ValueError(f"`positions` must be integers of shape {wanted}; got {describe(positions)}.")
    known = None if longest is None else known_values(positions)
    if known is not None and known.size and (known.min() < 0 or known.max() >= longest):
        raise ValueError(
            f"`positions` must be in [0, {longest}), those of the model; got {known.min()} to {known.max()}."
        )
    return positions


def placed(
    tokens: jax.Array,
    attention_mask: Any,
    mask: Any,
    positions: Any,
    longest: int | None = None,
    name: str = "attention_mask",
) -> tuple[Any, Any]:
    """What tokens may attend to, and where they are: the mask with padding left out, and positions.

    Args:
        tokens: integers `[..., length]`.
        attention_mask: ones and zeros `[..., length]`, or None.
        mask: a mask, or None.
        positions: integers `[length]` or `[..., length]`, or None: with an `attention_mask`, tokens are then counted
            from 0 in each sequence.
        longest: as in `checked_positions`.
        name: the name of the argument `attention_mask`.

    Returns:
        The mask, and the positions; None for each that is not needed.

    Raises:
        ValueError: as in `padding_of` and `checked_positions`.
    """
    if positions is not None:
        positions = checked_positions(positions, tokens, longest)
    if attention_mask is not None:
        padding, counted = padding_of(attention_mask, tokens, name)
        mask = restricted(mask, padding)
        positions = counted if positions is None else positions
    return mask, positions


def as_valid(valid: Any, name: str = "valid") -> Any:
    """Which tokens are real, as booleans: ones and zeros, as tokenizers give them, are converted."""
    valid = as_array(valid)
    dtype = dtype_of(valid)
    if dtype is None or dtype == np.bool_:
        return valid
    known = known_values(valid)
    if not jnp.issubdtype(dtype, jnp.integer) or (known is not None and not np.isin(known, (0, 1)).all()):
        raise ValueError(f"`{name}` must be booleans or ones and zeros; got {describe(valid)}.")
    return valid != 0

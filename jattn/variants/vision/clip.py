"""CLIP: attention pooling of an image, and the contrastive loss of images and texts."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_multiple, check_positive
from ...foundation.numerics import accumulation_dtype, unit
from ...foundation.shapes import check_shapes
from ...layers.layer import Layer, bias, kernel, normal
from ...layers.multi_head import multi_head
from ...ops.attention.api import partial_attention
from ...similarities import Dot
from .images import IMAGE_AXES, as_tokens

FIRST_LOG_SCALE = math.log(1 / 0.07)
"""t before training."""
LARGEST_SCALE = 100.0
"""exp(t) is never more."""


@dataclasses.dataclass(frozen=True)
class AttentionPool(Layer):
    """CLIP attention pooling: an image as one vector, from attention of its mean to its pixels.

        tokens = [mean(x); x] + positions,    out = multi_head(query = tokens_0, key = value = tokens)

    Radford et al. 2021 (arXiv:2103.00020), section 2.4, instead of a ResNet's average pooling.

    Args:
        height, width: size of the grid, which has learned positions.
        channels: channels of x.
        heads: number of heads of the attention; `channels` is a multiple of it.
        out_features: features of the result.

    Raises:
        ValueError: a size is below 1, or sizes do not divide; at the call, shapes do not match.

    >>> import jax
    >>> layer = AttentionPool(7, 5, 16, heads=4, out_features=8)
    >>> parameters = layer.init(jax.random.key(0))
    >>> jax.jit(layer)(parameters, jax.numpy.ones((2, 7, 5, 16))).shape
    (2, 8)
    """

    own_axes = IMAGE_AXES

    height: int
    width: int
    channels: int
    heads: int
    out_features: int

    def __post_init__(self):
        check_positive(**dataclasses.asdict(self))
        check_multiple("heads", channels=self.channels, heads=self.heads)

    def parameters(self) -> dict[str, Any]:
        """`positions [1 + height * width, channels]`, mean first; `query`, `key`, `value`, `out`."""
        heads = (self.heads, self.channels // self.heads)
        projection = {"kernel": kernel(self.channels, *heads), "bias": bias(*heads)}
        positions = bias(1 + self.height * self.width, self.channels, init=normal(self.channels**-0.5))
        return {
            "positions": positions,
            "query": dict(projection),
            "key": dict(projection),
            "value": dict(projection),
            "out": {"kernel": kernel(*heads, self.out_features, inputs=2), "bias": bias(self.out_features)},
        }

    def __call__(self, parameters: Mapping[str, Any], images: jax.Array) -> jax.Array:
        """`[..., out_features]`.

        Args:
            parameters: the layer's parameters.
            images: x, `[..., height, width, channels]`.
        """
        known = {name: getattr(self, name) for name in ("height", "width", "channels")}
        check_shapes(known, images=(images, "... height width channels"))
        dtype = accumulation_dtype(images)
        tokens = as_tokens(images).astype(dtype)
        tokens = jnp.concatenate([tokens.mean(-2, keepdims=True), tokens], -2)
        tokens = tokens + parameters["positions"].astype(dtype)
        projections = {name: parameters[name] for name in ("query", "key", "value", "out")}
        return multi_head(projections, tokens[..., :1, :], tokens)[..., 0, :].astype(images.dtype)


def contrastive_loss(images: jax.Array, texts: jax.Array, log_scale: jax.Array) -> jax.Array:
    """CLIP contrastive loss: symmetric InfoNCE, each image should find its text, and each text its image.

        s_ij = min(exp(t), 100) cos(image_i, text_j)
        loss = mean_i [ (logsumexp_j s_ij + logsumexp_j s_ji) / 2 - s_ii ]

    Radford et al. 2021 (arXiv:2103.00020), figure 3; t starts at `FIRST_LOG_SCALE`, ln(1/.07). Both logsumexps are
    those of `jattn.partial_attention`: the matrix of all pairs is streamed and never stored, so memory is linear in the
    batch. While the cap is active, t gets no gradient. So that it can recover, clip t itself to
    `math.log(LARGEST_SCALE)` after each update, as in CLIP's training.

    Args:
        images: `[..., pairs, features]`; norms do not matter.
        texts: `[..., pairs, features]`.
        log_scale: t, a floating-point number `[]`.

    Returns:
        `[...]`, float32 (float64).

    Raises:
        ValueError: shapes do not match; there are no pairs.

    >>> import jax.numpy as jnp
    >>> print(contrastive_loss(jnp.eye(4), jnp.eye(4), jnp.array(0.0)).round(3))
    0.744
    """
    sizes = check_shapes(images=(images, "... pairs features"), texts=(texts, "... pairs features"))
    if sizes["pairs"] == 0:
        raise ValueError(f"`images` must have at least one pair; got shape {images.shape}.")
    check_shapes(log_scale=(jnp.asarray(log_scale), "..."))
    if jnp.ndim(log_scale):
        raise ValueError(f"`log_scale` must be one number; got shape {jnp.shape(log_scale)}.")
    dtype = accumulation_dtype(images, texts)
    scale = jnp.minimum(jnp.exp(jnp.asarray(log_scale, dtype)), LARGEST_SCALE)
    one, other = unit(images.astype(dtype)), unit(texts.astype(dtype))

    right = scale * (one * other).sum(-1)

    def log_share(query: jax.Array, key: jax.Array) -> jax.Array:
        query, key = (scale * query)[..., None, :], key[..., None, :]
        partial = partial_attention(query, key, jnp.zeros_like(key[..., :1]), similarity=Dot())
        return partial.log_share(right[..., None])[..., 0]

    return -((log_share(one, other) + log_share(other, one)) / 2).mean(-1)


def quick_gelu(x: jax.Array) -> jax.Array:
    """x σ(1.702 x), CLIP's activation.

    >>> print(quick_gelu(jax.numpy.array(1.0)).round(3))
    0.846
    """
    return x * jax.nn.sigmoid(1.702 * x)

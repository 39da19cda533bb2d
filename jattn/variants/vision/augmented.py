"""Attention-augmented convolution: part of the channels by convolution, part by attention over the image."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_multiple, check_positive
from ...foundation.numerics import accumulation_dtype
from ...foundation.shapes import check_shapes
from ...layers.layer import Layer, bias, kernel, normal
from ...ops.attention.api import attention
from ...ops.attention.by_example import by_example
from ...similarities import Dot
from .images import IMAGE_AXES, convolve


@by_example(query="height width heads dim", key="height width heads dim", value="height width heads dim")
def relative_image_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, height_table: jax.Array, width_table: jax.Array
) -> jax.Array:
    """Attention among the pixels of an image, with relative logits in height and in width.

        score_ij = q_i · (k_j + r^H_{y_j - y_i} + r^W_{x_j - x_i}) / √qk_dim

    Bello et al. 2019 (arXiv:1904.09925), section 3.2. It reduces to a dot product: the query is extended by its logits
    q_i · r for each row and column of the image, the key by one-hot vectors of its row and column. So it streams, and
    needs height + width additional features instead of a bias with (height · width)² entries.

    Args:
        query: `[..., height, width, q_heads, qk_dim]`.
        key: `[..., height, width, kv_heads, qk_dim]`; `q_heads` must be a multiple of `kv_heads`.
        value: `[..., height, width, kv_heads, v_dim]`.
        height_table: r^H, `[2 height - 1, qk_dim]`, for the offsets -(height - 1), ..., height - 1; shared by all
            heads.
        width_table: r^W, `[2 width - 1, qk_dim]`.

    Returns:
        `[..., height, width, q_heads, v_dim]`, in the dtype of `value`; logits in float32 (float64).

    Raises:
        ValueError: shapes do not match; the tables are for another image size.

    >>> import jax, jax.numpy as jnp
    >>> q = jax.random.normal(jax.random.key(0), (2, 7, 5, 4, 8))
    >>> relative_image_attention(q, q, q, jnp.ones((13, 8)), jnp.ones((9, 8))).shape
    (2, 7, 5, 4, 8)
    """
    sizes = check_shapes(
        query=(query, "... height width q_heads qk_dim"),
        key=(key, "... height width kv_heads qk_dim"),
        value=(value, "... height width kv_heads v_dim"),
    )
    height, width, dim = sizes["height"], sizes["width"], sizes["qk_dim"]
    for name, table, extent in (("height_table", height_table, height), ("width_table", width_table, width)):
        check_shapes({"qk_dim": dim}, **{name: (table, f"{max(2 * extent - 1, 0)} qk_dim")})
    dtype = accumulation_dtype(query, key)
    query, key = query.astype(dtype) * dim**-0.5, key.astype(dtype)
    by_row = jnp.einsum("...yxhd,yrd->...yxhr", query, _offsets(height_table.astype(dtype), height))
    by_column = jnp.einsum("...yxhd,xcd->...yxhc", query, _offsets(width_table.astype(dtype), width))
    query = jnp.concatenate([query, by_row, by_column], -1)
    places = jnp.concatenate(
        [
            jnp.broadcast_to(jnp.eye(height, dtype=dtype)[:, None, None], (height, width, 1, height)),
            jnp.broadcast_to(jnp.eye(width, dtype=dtype)[None, :, None], (height, width, 1, width)),
        ],
        -1,
    )
    key = jnp.concatenate([key, jnp.broadcast_to(places, (*key.shape[:-1], height + width))], -1)
    tokens = [array.reshape(*array.shape[:-4], height * width, *array.shape[-2:]) for array in (query, key, value)]
    out = attention(*tokens, similarity=Dot())
    return out.reshape(*value.shape[:-2], *out.shape[-2:])


def _offsets(table: jax.Array, size: int) -> jax.Array:
    """`[from, to, dim]`: the row of the table for the offset to - from."""
    return table[jnp.arange(size) - jnp.arange(size)[:, None] + size - 1]


@dataclasses.dataclass(frozen=True)
class AugmentedConvolution(Layer):
    """Attention-augmented convolution: channels of a convolution, concatenated with channels of attention.

    out = [conv(x); attention(x) W_o], concatenated along the channels.

    Bello et al. 2019 (arXiv:1904.09925), equation 4. Attention is `relative_image_attention` over all pixels, with q,
    k, v from 1x1 convolutions. Strides are 1.

    Demonstrated in `examples/experiments/distant_pixels.py`.

    Args:
        height, width: size of the images, on which the relative tables depend.
        in_channels: channels of x.
        out_channels: channels of both parts together.
        attention_channels: channels of the attention's part (the paper's d_v), less than `out_channels`.
        key_channels: channels of queries and keys, of all heads together (d_k).
        heads: number of heads of the attention; `attention_channels` and `key_channels` are multiples of it.
        kernel_size: side of the convolution.

    Raises:
        ValueError: a size is below 1, or sizes do not divide; at the call, shapes do not match.

    >>> import jax
    >>> layer = AugmentedConvolution(7, 5, 3, 16, attention_channels=8, key_channels=8, heads=2)
    >>> parameters = layer.init(jax.random.key(0))
    >>> jax.jit(layer)(parameters, jax.numpy.ones((2, 7, 5, 3))).shape
    (2, 7, 5, 16)
    """

    own_axes = IMAGE_AXES

    height: int
    width: int
    in_channels: int
    out_channels: int
    attention_channels: int
    key_channels: int
    heads: int
    kernel_size: int = 3

    def __post_init__(self):
        check_positive(**dataclasses.asdict(self))
        channels = {name: getattr(self, name) for name in ("attention_channels", "key_channels")}
        check_multiple("heads", **channels, heads=self.heads)
        if self.attention_channels >= self.out_channels:
            raise ValueError(
                "`attention_channels` must be less than `out_channels`, so that some are left to the convolution; "
                f"got {self.attention_channels} and {self.out_channels}."
            )

    def parameters(self) -> dict[str, Any]:
        """`convolution` (kernel, bias); `query`, `key`, `value`; `out`; the tables `height` and `width`."""
        features, heads = self.in_channels, self.heads
        dim, v_dim = self.key_channels // heads, self.attention_channels // heads
        rest = self.out_channels - self.attention_channels
        return {
            "convolution": {
                "kernel": kernel(self.kernel_size, self.kernel_size, features, rest, inputs=3),
                "bias": bias(rest),
            },
            "query": kernel(features, heads, dim),
            "key": kernel(features, heads, dim),
            "value": kernel(features, heads, v_dim),
            "out": kernel(heads, v_dim, self.attention_channels, inputs=2),
            "height": bias(2 * self.height - 1, dim, init=normal(dim**-0.5)),
            "width": bias(2 * self.width - 1, dim, init=normal(dim**-0.5)),
        }

    def __call__(self, parameters: Mapping[str, Any], images: jax.Array) -> jax.Array:
        """`[..., height, width, out_channels]`, in the dtype of `images`, convolution first.

        Args:
            parameters: the layer's parameters.
            images: x, `[..., height, width, in_channels]`.
        """
        known = {name: getattr(self, name) for name in ("height", "width", "in_channels")}
        check_shapes(known, images=(images, "... height width in_channels"))
        dtype = accumulation_dtype(images)
        given = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), dict(parameters))
        x = images.astype(dtype)
        local = convolve(x, given["convolution"]["kernel"]) + given["convolution"]["bias"]
        query, key, value = (jnp.einsum("...yxc,chd->...yxhd", x, given[name]) for name in ("query", "key", "value"))
        attended = relative_image_attention(query, key, value, given["height"], given["width"])
        attended = jnp.einsum("...yxhd,hdc->...yxc", attended, given["out"])
        return jnp.concatenate([local, attended], -1).astype(images.dtype)

"""Non-local blocks: every pixel attends to every pixel, with a residual connection."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_choice, check_positive
from ...foundation.numerics import accumulation_dtype
from ...foundation.shapes import check_shapes
from ...layers.layer import Layer, kernel, zeros
from ...normalizers import ReLU
from ...ops.attention.api import attention
from ...similarities import Dot
from .images import IMAGE_AXES, as_dtype, as_tokens

PAIRWISE = ("gaussian", "embedded", "dot", "concat")


@dataclasses.dataclass(frozen=True)
class NonLocal(Layer):
    """Non-local block: every pixel attends to every pixel, and the result is added to the image.

    y_i = Σ_j f(x_i, x_j) g(x_j) / C_i over all pixels j, and z = x + y W_z.

        "gaussian"    f = exp(x_iᵀ x_j),         C_i = Σ_j f
        "embedded"    f = exp(θ(x_i)ᵀ φ(x_j)),   C_i = Σ_j f
        "dot"         f = θ(x_i)ᵀ φ(x_j),        C_i = N, the number of pixels
        "concat"      f = relu(w · [θ(x_i); φ(x_j)]),   C_i = N

    Wang et al. 2018 (arXiv:1711.07971). W_z is initialized to zero, so that at first the block is the identity; in the
    paper, a batch norm after it is initialized to zero instead. θ, φ, g are projections to `hidden` channels without
    bias. There is no factor 1/√hidden.

    None of the four stores the matrix of all pairs. The first two are streamed `jattn.attention`. "dot" is a product of
    three matrices, computed from the right: θ (φᵀ g) / N. "concat" reduces to a dot product, [w_θ·θ(x_i), 1] · [1,
    w_φ·φ(x_j)], with the normalizer `jattn.normalizers.ReLU`, also streamed.

    Demonstrated in `examples/experiments/distant_pixels.py`.

    Args:
        channels: channels of x.
        hidden: channels of θ, φ and g; `channels / 2` in the paper.
        pairwise: one of the four.

    Raises:
        ValueError: a size is below 1; `pairwise` is unknown; at the call, shapes do not match.

    >>> import jax
    >>> layer = NonLocal(32, 16, "dot")
    >>> parameters = layer.init(jax.random.key(0))
    >>> jax.jit(layer)(parameters, jax.numpy.ones((2, 7, 5, 32))).shape
    (2, 7, 5, 32)
    """

    own_axes = IMAGE_AXES

    channels: int
    hidden: int
    pairwise: Literal["gaussian", "embedded", "dot", "concat"] = "embedded"

    def __post_init__(self):
        check_positive(channels=self.channels, hidden=self.hidden)
        check_choice("pairwise", self.pairwise, PAIRWISE)

    def parameters(self) -> dict[str, Any]:
        """`value` (g) and `out` (W_z); except for "gaussian", `query` (θ) and `key` (φ); for "concat", `pair`."""
        declared: dict[str, Any] = {
            "value": kernel(self.channels, self.hidden),
            "out": kernel(self.hidden, self.channels)._replace(init=zeros),
        }
        if self.pairwise != "gaussian":
            declared |= {name: kernel(self.channels, self.hidden) for name in ("query", "key")}
        if self.pairwise == "concat":
            declared["pair"] = kernel(2 * self.hidden)
        return declared

    def __call__(self, parameters: Mapping[str, Any], images: jax.Array) -> jax.Array:
        """z, `[..., height, width, channels]`, in the dtype of `images`.

        Args:
            parameters: the layer's parameters.
            images: x, `[..., height, width, channels]`.
        """
        check_shapes({"channels": self.channels}, images=(images, "... height width channels"))
        dtype = accumulation_dtype(images)
        names = [name for name in self.parameters()]
        given = dict(zip(names, as_dtype(dtype, *(parameters[name] for name in names)), strict=True))
        x = as_tokens(images).astype(dtype)
        value = x @ given["value"]
        query, key = (x, x) if self.pairwise == "gaussian" else (x @ given["query"], x @ given["key"])
        if self.pairwise == "dot":
            summary = jnp.einsum("...nd,...ne->...de", key, value) / max(x.shape[-2], 1)
            seen = query @ summary
        else:
            normalizer = None
            if self.pairwise == "concat":
                left, right = jnp.split(given["pair"], 2)
                query, key = (query @ left)[..., None], (key @ right)[..., None]
                query = jnp.concatenate([query, jnp.ones_like(query)], -1)
                key = jnp.concatenate([jnp.ones_like(key), key], -1)
                normalizer = ReLU()
            one_head = (array[..., None, :] for array in (query, key, value))
            seen = attention(*one_head, similarity=Dot(), normalizer=normalizer)[..., 0, :]
        out = (seen @ given["out"]).reshape(images.shape)
        return (images + out).astype(images.dtype)

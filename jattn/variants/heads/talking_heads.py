"""Talking-heads attention: heads are mixed before and after the softmax."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_flags, check_multiple, check_positive, leave_out
from ...foundation.arrays import as_jax
from ...foundation.numerics import accumulation_dtype
from ...foundation.shapes import check_shapes
from ...layers.layer import OWN_AXES, Layer, kernel, multi_head_parameters, project, project_heads
from ...ops.attention.api import attention
from ...ops.attention.by_example import by_example
from ...similarities import Dot


@by_example(query="length heads dim", key="length heads dim", value="length heads dim")
def talking_heads(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    before: jax.Array,
    after: jax.Array,
    *,
    scale: float | None = None,
    **pieces: Any,
) -> jax.Array:
    """Scores and weights of every head are linear mixtures over the heads.

        J_h = Σ_i before[i, h] scale q_i·k_i,    W = softmax(J | mask),    out_j = Σ_h after[h, j] W_h v_j

    Shazeer et al. 2020 (arXiv:2003.02436). Both mixtures are linear, so they can be moved into the arrays, and one call
    of `jattn.attention` streams it all: head h has the query [before[i, h] q_i]_i and shares the key [k_i]_i and the
    value [v_j]_j with all others; `after` mixes the outputs. Memory stays linear and tiles are skipped, at
    `softmax_heads` times the multiplications of attention without mixing. Mixing scores held in memory would only add 2
    softmax_heads / dim times as many.

    Args:
        query: `[..., q_len, qk_heads, dim]`.
        key: `[..., kv_len, qk_heads, dim]`.
        value: `[..., kv_len, v_heads, v_dim]`.
        before: `[qk_heads, softmax_heads]`; the identity leaves the scores as they are.
        after: `[softmax_heads, v_heads]`.
        scale: scale of the dot products, by default 1/√dim (the paper has no scale, and absorbs it into its
            initialization).
        **pieces: arguments of `jattn.attention`, except the similarity. Heads of scores, masks and sinks are softmax
            heads.

    Returns:
        `[..., q_len, v_heads, v_dim]`, in the dtype of `value`.

    Raises:
        ValueError: shapes do not match; a similarity is given; as in `jattn.attention`.

    >>> import jax, jax.numpy as jnp
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (2, 10, 4, 16)) for i in range(3))
    >>> talking_heads(q, k, v, jnp.eye(4), jnp.eye(4)).shape
    (2, 10, 4, 16)
    """
    pieces = leave_out(pieces, "only dot products mix inside the arrays", "similarity")
    sizes = check_shapes(
        query=(query, "... q_len qk_heads dim"),
        key=(key, "... kv_len qk_heads dim"),
        value=(value, "... kv_len v_heads v_dim"),
        before=(before, "qk_heads softmax_heads"),
        after=(after, "softmax_heads v_heads"),
    )
    query, key, value, before, after = as_jax(query, key, value, before, after)
    wide = accumulation_dtype(query, before)
    mixed = jnp.einsum("...qid,ih->...qhid", query.astype(wide), before.astype(wide))
    together = [one.reshape(*one.shape[:-2], one.shape[-2] * one.shape[-1]) for one in (mixed, key, value)]
    out = attention(
        together[0],
        together[1][..., None, :],
        together[2][..., None, :],
        similarity=Dot(sizes["dim"] ** -0.5 if scale is None else scale),
        **pieces,
    )
    out = out.reshape(*out.shape[:-1], sizes["v_heads"], sizes["v_dim"])
    out = jnp.einsum("...qhjd,hj->...qjd", out.astype(wide), after.astype(wide))
    return out.astype(value.dtype)


@dataclasses.dataclass(frozen=True)
class TalkingHeads(Layer):
    """Talking heads: multi-head self-attention with learned mixtures of heads before and after the softmax.

        out = W_o talking_heads(x W_q, x W_k, x W_v, before, after)

    Shazeer et al. 2020 (arXiv:2003.02436). Both mixtures are initialized like any kernel, to random projections of the
    heads.

    Args:
        features: features of inputs and outputs, a multiple of `heads`.
        heads: number of heads.
        softmax_heads: number of heads that the softmax is taken in; by default `heads`.
        use_bias: whether the projections of features have a bias.

    Raises:
        ValueError: sizes do not match; `use_bias` is not a flag; at the call, as in `talking_heads`.

    >>> import jax
    >>> layer = TalkingHeads(16, heads=4, softmax_heads=6)
    >>> layer(layer.init(jax.random.key(0)), jax.numpy.ones((2, 9, 16)), mask=lambda q, k: k <= q).shape
    (2, 9, 16)
    """

    own_axes = OWN_AXES

    features: int
    heads: int
    softmax_heads: int | None = None
    use_bias: bool = False

    def __post_init__(self):
        check_positive(features=self.features, heads=self.heads, softmax_heads=self.mixtures)
        check_multiple("heads", features=self.features, heads=self.heads)
        check_flags(use_bias=self.use_bias)

    @property
    def mixtures(self) -> int:
        """The number of softmax heads."""
        return self.heads if self.softmax_heads is None else self.softmax_heads

    def parameters(self) -> dict[str, Any]:
        """`query`, `key`, `value`, `out` of multi-head attention; `before [heads, softmax_heads]`, `after`."""
        mixed = {"before": kernel(self.heads, self.mixtures), "after": kernel(self.mixtures, self.heads)}
        return multi_head_parameters(self.features, self.heads, use_bias=self.use_bias) | mixed

    def __call__(self, parameters: Mapping[str, Any], inputs: jax.Array, **pieces: Any) -> jax.Array:
        """Apply the layer; the result is `[..., length, features]`.

        Args:
            parameters: the layer's parameters.
            inputs: `[..., length, features]`.
            **pieces: arguments of `talking_heads`: `mask`, `scores`, ...
        """
        check_shapes({"features": self.features}, inputs=(inputs, "... length features"))
        query, key, value = project_heads(parameters, inputs)
        heads = talking_heads(query, key, value, parameters["before"], parameters["after"], **pieces)
        return project(parameters["out"], heads, "...lhd,hdf->...lf")

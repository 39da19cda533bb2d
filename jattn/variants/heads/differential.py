"""Differential attention: the difference of two softmaxes."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...foundation.arguments import check_positive, leave_out
from ...foundation.arrays import as_jax, describe, of_rank
from ...foundation.numerics import accumulation_dtype, widen
from ...foundation.shapes import check_shapes
from ...layers.layer import OWN_AXES, Layer, bias, kernel, normal, ones, project_heads
from ...layers.norms import rms_norm
from ...ops.attention.api import attention
from ...ops.attention.by_example import by_example

EPSILON = 1e-5


@by_example(query="length heads dim", key="length heads dim", value="length heads dim")
def differential(
    query: jax.Array, key: jax.Array, value: jax.Array, amount: jax.Array | float, **pieces: Any
) -> jax.Array:
    """The difference of two softmaxes, which cancels what they have in common.

        out_h = (softmax(q_2h k_2hᵀ / √dim) - λ softmax(q_2h+1 k_2h+1ᵀ / √dim)) v_h

    Ye et al. 2024 (arXiv:2410.05258). Heads 2h and 2h + 1 form a pair, as in the authors' code. Computed by two
    streamed calls of `jattn.attention` on the same values.

    Args:
        query: `[..., q_len, 2 * heads, dim]`.
        key: `[..., kv_len, 2 * kv_heads, dim]`.
        value: `[..., kv_len, kv_heads, v_dim]`; the paper has v_dim = 2 * dim.
        amount: λ, a number, or an array of shape [] or `[heads]`.
        **pieces: arguments of `jattn.attention`, the same for both softmaxes, with `heads` heads.

    Returns:
        `[..., q_len, heads, v_dim]`, in the dtype of `value`. Rows of weights sum to 1 - λ.

    Raises:
        ValueError: the number of heads is odd; λ has another shape; dropout is given (both calls would drop the same
            pairs); as in `jattn.attention`.

    >>> import jax
    >>> q, k = (jax.random.normal(jax.random.key(i), (2, 10, 8, 16)) for i in range(2))
    >>> v = jax.random.normal(jax.random.key(2), (2, 10, 4, 32))
    >>> differential(q, k, v, 0.8, mask=lambda q, k: k <= q).shape
    (2, 10, 4, 32)
    """
    check_shapes(
        query=(query, "... q_len query_heads dim"),
        key=(key, "... kv_len key_heads dim"),
        value=(value, "... kv_len kv_heads v_dim"),
    )
    for name, one in (("query", query), ("key", key)):
        if one.shape[-2] % 2:
            raise ValueError(f"`{name}` must have an even number of heads, two for each softmax pair; got {one.shape}.")
    if 2 * value.shape[-2] != key.shape[-2]:
        raise ValueError(f"`value` must have half the heads of `key`; got value {value.shape} and key {key.shape}.")
    heads = query.shape[-2] // 2
    known: Any = amount if hasattr(amount, "shape") else np.asarray(amount)
    if known.shape not in ((), (heads,)) or not (
        jnp.issubdtype(known.dtype, jnp.floating) or jnp.issubdtype(known.dtype, jnp.integer)
    ):
        raise ValueError(
            f"`amount` must be a number or an array of numbers [heads] with heads = {heads}; got {describe(amount)}."
        )
    query, key, value, amount = as_jax(query, key, value, amount)
    why = "both softmaxes would drop the same weights (drop parts of the output instead)"
    pieces = leave_out(pieces, why, "dropout")
    first, second = (
        attention(query[..., side::2, :], key[..., side::2, :], value, **pieces).astype(accumulation_dtype(value))
        for side in (0, 1)
    )
    amount = jnp.asarray(amount, first.dtype)
    return (first - of_rank(amount[..., None], second.ndim) * second).astype(value.dtype)


@dataclasses.dataclass(frozen=True)
class Differential(Layer):
    """Differential attention: self-attention by the difference of two softmaxes over the same values.

        λ = exp(λ_q1·λ_k1) - exp(λ_q2·λ_k2) + λ_init,    λ_init = 0.8 - 0.6 exp(-0.3 (depth - 1))
        out = W_o [(1 - λ_init) rms_norm(head_h)]_h

    Ye et al. 2024 (arXiv:2410.05258): values are as wide as two queries, λ is shared by the heads, and each head is
    normalized by its root mean square (ε = 1e-5) with a gain shared by the heads, as in the authors' code.

    Args:
        features: features of inputs and outputs, a multiple of `2 * heads`.
        heads: number of pairs of softmaxes, usually half the number of heads of an ordinary layer.
        depth: depth of the layer, counted from 1.

    Raises:
        ValueError: sizes do not match; at the call, as in `differential`.

    >>> import jax
    >>> layer = Differential(32, heads=2, depth=1)
    >>> layer(layer.init(jax.random.key(0)), jax.numpy.ones((2, 9, 32)), mask=lambda q, k: k <= q).shape
    (2, 9, 32)
    """

    own_axes = OWN_AXES

    features: int
    heads: int
    depth: int

    def __post_init__(self):
        check_positive(features=self.features, heads=self.heads, depth=self.depth)
        if self.features % (2 * self.heads):
            raise ValueError(
                f"`features` must be a multiple of `2 * heads`; got features {self.features} and heads {self.heads}."
            )

    @property
    def initial_amount(self) -> float:
        """λ_init."""
        return 0.8 - 0.6 * math.exp(-0.3 * (self.depth - 1))

    def parameters(self) -> dict[str, Any]:
        """Kernels of `query`, `key`, `value`, `out`; `amount.query1, key1, query2, key2 [dim]`; `gain [2 dim]`."""
        dim = self.features // (2 * self.heads)
        narrow, wide = (2 * self.heads, dim), (self.heads, 2 * dim)
        vector = bias(dim, init=normal(0.1))
        return {
            "query": {"kernel": kernel(self.features, *narrow)},
            "key": {"kernel": kernel(self.features, *narrow)},
            "value": {"kernel": kernel(self.features, *wide)},
            "amount": dict.fromkeys(("query1", "key1", "query2", "key2"), vector),
            "gain": bias(2 * dim, init=ones),
            "out": {"kernel": kernel(*wide, self.features, inputs=2)},
        }

    def amount(self, parameters: Mapping[str, Any]) -> jax.Array:
        """λ, a number."""
        vectors = jax.tree.map(widen, parameters["amount"])
        pairs = (jnp.exp(jnp.vdot(vectors[f"query{i}"], vectors[f"key{i}"])) for i in (1, 2))
        return next(pairs) - next(pairs) + self.initial_amount

    def __call__(self, parameters: Mapping[str, Any], inputs: jax.Array, **pieces: Any) -> Any:
        """Apply the layer; the result is `[..., length, features]`.

        Args:
            parameters: the layer's parameters.
            inputs: `[..., length, features]`.
            **pieces: arguments of `differential`: `mask`, `scores`, ...
        """
        check_shapes({"features": self.features}, inputs=(inputs, "... length features"))
        query, key, value = project_heads(parameters, inputs)
        heads = differential(query, key, value, self.amount(parameters), **pieces)
        heads = rms_norm(heads, (1 - self.initial_amount) * parameters["gain"], EPSILON)
        return jnp.einsum("...lhd,hdf->...lf", heads, parameters["out"]["kernel"])

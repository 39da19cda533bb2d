"""A mixture of experts as the feed-forward layer of a block."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ..foundation.arguments import check_positive
from .layers import FeedForward


class Experts(FeedForward):
    """The mixture of gpt-oss (arXiv:2508.10925): each token goes to the k experts with the highest router logits.

        logits = x W_r + b_r
        out = Σ_(e in top k) softmax(top k logits)_e · expert_e(x)
        expert(x) = ((clip(up, -limit, limit) + 1) · gate · sigmoid(alpha · gate)) W_down + b_down
            with gate = min(x W_gate + b_gate, limit),  up = x W_up + b_up

    Tokens are sorted by expert, so each expert multiplies only its own (`jax.lax.ragged_dot`).

    Args:
        features: features of inputs and outputs.
        hidden: features inside an expert.
        experts: number of experts.
        per_token: k.
        alpha, limit: see above.
        dtype: the dtype to compute in, by default that of inputs and parameters.
        param_dtype: the dtype of the parameters.
        rngs: random streams.

    Raises:
        ValueError: `experts` or `per_token` is not positive, or `per_token` is larger than `experts`.

    >>> from flax import nnx
    >>> layer = Experts(8, 16, experts=4, per_token=2, rngs=nnx.Rngs(0))
    >>> jax.eval_shape(layer, jnp.ones((2, 3, 8))).shape
    (2, 3, 8)
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        experts: int,
        per_token: int,
        *,
        alpha: float = 1.702,
        limit: float = 7.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_positive(experts=experts, per_token=per_token)
        if per_token > experts:
            raise ValueError(f"`per_token` must be at most the {experts} experts; got {per_token}.")
        self.router = nnx.Linear(features, experts, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.gate = _Kernels(experts, features, hidden, **options)
        self.up = _Kernels(experts, features, hidden, **options)
        self.down = _Kernels(experts, hidden, features, **options)
        self.per_token, self.alpha, self.limit = per_token, alpha, limit

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., features]` -> `[..., features]`."""
        x = self.placed(x)
        rows = x.reshape(-1, x.shape[-1])
        top, chosen = jax.lax.top_k(self.router(rows), self.per_token)
        weights = jax.nn.softmax(top, axis=-1)
        order = jnp.argsort(chosen.reshape(-1))  # of pairs (token, choice), by expert
        expert = chosen.reshape(-1)[order]
        groups = jnp.bincount(expert, length=self.router.out_features).astype(jnp.int32)
        inputs = rows[order // self.per_token]
        gate = jnp.minimum(self.gate(inputs, expert, groups), self.limit)
        up = jnp.clip(self.up(inputs, expert, groups), -self.limit, self.limit)
        out = self.down((up + 1) * gate * jax.nn.sigmoid(self.alpha * gate), expert, groups)
        out = out * weights.reshape(-1)[order][:, None].astype(out.dtype)
        return jnp.zeros_like(out, shape=rows.shape).at[order // self.per_token].add(out).reshape(x.shape)


class _Kernels(nnx.Module):
    """A linear layer for each expert: `kernel [experts, inputs, outputs]` and `bias [experts, outputs]`."""

    def __init__(self, experts: int, inputs: int, outputs: int, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal(batch_axis=(0,))
        self.kernel = nnx.Param(init(rngs.params(), (experts, inputs, outputs), param_dtype))
        self.bias = nnx.Param(jnp.zeros((experts, outputs), param_dtype))
        self.dtype = dtype

    def __call__(self, rows: jax.Array, expert: jax.Array, groups: jax.Array) -> jax.Array:
        """Rows that are sorted by expert, times the kernel of their expert."""
        kernel, bias = self.kernel[...], self.bias[...]
        dtype = jnp.result_type(rows, kernel) if self.dtype is None else self.dtype
        product = jax.lax.ragged_dot(rows.astype(dtype), kernel.astype(dtype), groups)
        return product + bias.astype(dtype)[expert]

"""Root-mean-square and layer normalization, and the normalization of queries and keys."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ..foundation.arguments import check_choice, check_flags
from ..foundation.arrays import of_rank
from ..foundation.numerics import widen


def rms_norm(x: jax.Array, scale: Any = None, epsilon: float = 1e-6) -> jax.Array:
    """x / √(mean(x²) + ε), times a scale, over the last axis: Zhang & Sennrich 2019 (arXiv:1910.07467).

    Args:
        x: `[..., dim]`.
        scale: broadcasts to `x`; or None.
        epsilon: ε.

    Returns:
        Shape and dtype of `x`; computed in float32 (float64 for float64).

    >>> import jax.numpy as jnp
    >>> print(rms_norm(jnp.array([3.0, -3.0]), jnp.array([1.0, 2.0])).round(3))
    [ 1. -2.]
    """
    wide = widen(x)
    normal = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + epsilon)
    return (normal if scale is None else normal * of_rank(scale.astype(wide.dtype), wide.ndim)).astype(x.dtype)


def layer_norm(x: jax.Array, scale: Any = None, bias: Any = None, epsilon: float = 1e-5) -> jax.Array:
    """(x - mean(x)) / √(var(x) + ε), times a scale, plus a bias, over the last axis: Ba et al. 2016 (arXiv:1607.06450).

    Args:
        x: `[..., dim]`.
        scale: broadcasts to `x`; or None.
        bias: broadcasts to `x`; or None.
        epsilon: ε.

    Returns:
        Shape and dtype of `x`; computed in float32 (float64 for float64).

    >>> import jax.numpy as jnp
    >>> print(layer_norm(jnp.array([5.0, 1.0]), bias=jnp.array([0.0, 1.0])).round(3))
    [1. 0.]
    """
    wide = widen(x)
    centered = wide - wide.mean(-1, keepdims=True)
    normal = rms_norm(centered, scale, epsilon)
    return (normal if bias is None else normal + of_rank(bias.astype(wide.dtype), wide.ndim)).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class QKNorm:
    """How multi-head attention normalizes its queries and keys, after the projection and before the rotation.

        x = x / √(mean(x²) + ε) * g                          kind "rms"
        x = (x - mean(x)) / √(var(x) + ε) * g + b            kind "layer"

    | model | call |
    |---|---|
    | Qwen 3 (arXiv:2505.09388), and Henry et al. 2020 (arXiv:2010.04245) with the root mean square | `QKNorm()` |
    | Gemma 3 (arXiv:2503.19786) | `QKNorm(zero_centered=True)` |
    | OLMo 2 (arXiv:2501.00656) | `QKNorm(over="heads")` |
    | Persimmon; ViT-22B (arXiv:2302.05442), which has no bias | `QKNorm("layer", use_bias=True)`; `QKNorm("layer")` |
    | Cohere's Command R, StableLM 2 | `QKNorm("layer", per_head=True)` |

    Args:
        kind: `"rms"` or `"layer"`.
        over: the statistics are taken over the features of each `"head"`, or of all `"heads"` of a token together.
        per_head: whether every head has its own scale (and bias); always so with `over="heads"`.
        use_bias: whether there is a bias b, for `"layer"`.
        zero_centered: whether the parameter is g - 1, which starts at 0.
        epsilon: ε.

    Raises:
        ValueError: a choice is unknown; `use_bias` with `"rms"`; ε is not a nonnegative number.

    >>> QKNorm(over="heads")
    QKNorm(kind='rms', over='heads', per_head=False, use_bias=False, zero_centered=False, epsilon=1e-06)
    """

    kind: Literal["rms", "layer"] = "rms"
    over: Literal["head", "heads"] = "head"
    per_head: bool = False
    use_bias: bool = False
    zero_centered: bool = False
    epsilon: float = 1e-6

    def __post_init__(self):
        check_choice("kind", self.kind, ("rms", "layer"))
        check_choice("over", self.over, ("head", "heads"))
        check_flags(per_head=self.per_head, use_bias=self.use_bias, zero_centered=self.zero_centered)
        if self.use_bias and self.kind == "rms":
            raise ValueError("`use_bias` needs `kind='layer'`: a norm by the root mean square has no bias.")
        if not isinstance(self.epsilon, (int, float)) or isinstance(self.epsilon, bool) or not self.epsilon >= 0:
            raise ValueError(f"`epsilon` must be a number of at least 0; got {self.epsilon!r}.")

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes of scale and bias."""
        return ("head", "dim") if self.per_head or self.over == "heads" else ("dim",)

    def initializers(self) -> dict[str, Any]:
        """Initializers of scale and bias: at first the norm neither scales nor shifts."""
        one = jax.nn.initializers.zeros if self.zero_centered else jax.nn.initializers.ones
        return {"scale": one, "bias": jax.nn.initializers.zeros}

    def apply(self, x: jax.Array, parameters: Mapping[str, Any], *, mesh_axis: str | None = None) -> jax.Array:
        """Normalize `x [..., heads, head_dim]`; the result has its dtype, computed in float32 (float64 for float64).

        Args:
            x: queries or keys.
            parameters: `scale [head_dim]` or `[heads, head_dim]`, and optionally a `bias` of the same shape.
            mesh_axis: inside `shard_map`, the mesh axis over which heads are split evenly.
        """
        over = (-2, -1) if self.over == "heads" else (-1,)

        def mean(values: jax.Array) -> jax.Array:
            local = values.mean(over, keepdims=True)
            return jax.lax.pmean(local, mesh_axis) if mesh_axis and self.over == "heads" else local

        wide = widen(x)
        if self.kind == "layer":
            wide = wide - mean(wide)
        scale = of_rank(parameters["scale"].astype(wide.dtype), wide.ndim)
        if self.zero_centered:
            scale = scale + 1
        normal = wide * jax.lax.rsqrt(mean(jnp.square(wide)) + self.epsilon) * scale
        if "bias" in parameters:
            normal = normal + of_rank(parameters["bias"].astype(wide.dtype), wide.ndim)
        return normal.astype(x.dtype)


def as_qk_norm(qk_norm: Any) -> QKNorm | None:
    """The requested norm: True means `QKNorm()`, False and None mean no norm.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(qk_norm, QKNorm):
        return qk_norm
    if qk_norm is not None and not isinstance(qk_norm, bool):
        raise ValueError(f"`qk_norm` must be True, False or a `jattn.layers.QKNorm(...)`; got {qk_norm!r}.")
    return QKNorm() if qk_norm else None

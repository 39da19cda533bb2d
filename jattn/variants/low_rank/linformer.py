"""Linformer: keys and values projected to a fixed length (Wang et al. 2020)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...foundation.arguments import check_choice, check_flags, check_multiple, check_positive
from ...foundation.numerics import accumulation_dtype
from ...foundation.shapes import check_shapes
from ...layers.layer import OWN_AXES, Layer, Parameter, multi_head_parameters, normal, project, project_heads
from ...ops.attention.api import attention
from ...ops.attention.by_example import by_example
from ...ops.dispatch import Unsupported
from .padding import without_padding

SHARING = ("none", "heads", "kv", "layers")
POOLING = ("linear", "mean", "convolution")


@by_example(query="length heads dim", key="length heads dim", value="length heads dim")
def linformer_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    key_projection: Any,
    value_projection: Any = None,
    *,
    lengths: Any = None,
    mask: Any = None,
    **options: Any,
) -> jax.Array:
    """Attention to `projected` mixtures of keys, in time and memory linear in the length:

        out = softmax(Q (E K)ᵀ / √dim) (F V)        E, F: [projected, kv_len]

    Wang et al. 2020 (arXiv:2006.04768). It equals softmax attention only if E = F = I, and otherwise is a different
    layer: E and F are learned, and random ones do not approximate the softmax, however large `projected` is. Computed
    by `jattn.attention` over the projected keys.

    Every mixture contains every position, so no mask can be respected, not even a causal one.

    Args:
        query: Q, `[..., q_len, heads, dim]`.
        key: K, `[..., kv_len, kv_heads, dim]`.
        value: V, `[..., kv_len, kv_heads, v_dim]`.
        key_projection: E, `[projected, longest]`, for all heads, or `[kv_heads, projected, longest]`. Shorter inputs
            are padded with zeros to `longest`.
        value_projection: F, of the same shape; None shares E.
        lengths: the number of keys that are not padding, integers `[...]` for the batch; padding is 0 in E K and F V.
        mask: rejected.
        **options: arguments of `jattn.attention`, over the projected keys: `similarity`, `implementation`, `dropout`.

    Returns:
        `[..., q_len, heads, v_dim]`, in the dtype of the value; the projection is at least float32, then rounded.

    Raises:
        ValueError: shapes do not match; there are more keys than `longest`.
        Unsupported: a mask is given; the message gives the reason.

    >>> import jax, jax.numpy as jnp
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (2, 60, 4, 8)) for i in range(3))
    >>> linformer_attention(q, k, v, pooling_projection(60, 10)).shape
    (2, 60, 4, 8)
    """
    if mask is not None:
        raise Unsupported(
            f"Linformer cannot keep a `mask`, and is not causal: each projected key mixes all positions, so that none "
            f"can be hidden from a query; got {mask!r}. For padding at the end give `lengths`; for a causal model, a "
            "window (`jattn.masks.SlidingWindow`) or linear attention."
        )
    if options.keys() - {"similarity", "implementation", "dropout"}:
        raise ValueError(
            f"the options are `similarity`, `implementation` and `dropout`; got {sorted(options)}. Projected keys have "
            "no positions, to which scores could refer."
        )
    sizes = check_shapes(
        query=(query, "... q_len heads dim"),
        key=(key, "... kv_len kv_heads dim"),
        value=(value, "... kv_len kv_heads v_dim"),
    )
    value_projection = key_projection if value_projection is None else value_projection
    key, value = without_padding(lengths, key=key, value=value)
    key = _projected("key_projection", key_projection, key, sizes)
    value = _projected("value_projection", value_projection, value, sizes)
    if key.shape[-3] != value.shape[-3]:
        raise ValueError(
            f"`key_projection` and `value_projection` must have equally many rows; got {key.shape[-3]} and "
            f"{value.shape[-3]}."
        )
    return attention(query, key, value, **options)


def _projected(name: str, projection: Any, array: jax.Array, sizes: dict[str, int]) -> jax.Array:
    """`[..., projected, kv_heads, dim]`."""
    if jnp.ndim(projection) not in (2, 3):
        raise ValueError(
            f"`{name}` must have shape [projected, longest] or [kv_heads, projected, longest]; got "
            f"{jnp.shape(projection)}."
        )
    layout = "projected longest" if jnp.ndim(projection) == 2 else "kv_heads projected longest"
    longest = check_shapes({"kv_heads": sizes["kv_heads"]}, **{name: (projection, layout)})["longest"]
    if sizes["kv_len"] > longest:
        raise ValueError(
            f"`{name}` must have a column for each of the {sizes['kv_len']} keys; got shape {jnp.shape(projection)}. "
            "Shorter inputs are fine: make it for the longest."
        )
    projection = projection[..., : sizes["kv_len"]]  # the others would meet zeros
    axes = "hpk" if projection.ndim == 3 else "pk"
    wide = accumulation_dtype(array)
    mixed = jnp.einsum(f"{axes},...khd->...phd", projection, array, preferred_element_type=wide)
    return mixed.astype(array.dtype)


def pooling_projection(longest: int, projected: int) -> np.ndarray:
    """The projection that takes means: row i is 1/size on the i-th of `projected` segments of nearly equal size.

    Returns:
        float32 `[projected, longest]`.

    Raises:
        ValueError: there are fewer positions than segments.

    >>> pooling_projection(3, 2)
    array([[0.5, 0.5, 0. ],
           [0. , 0. , 1. ]], dtype=float32)
    """
    inside = _segments(longest, projected)
    return (inside / inside.sum(-1, keepdims=True)).astype(np.float32)


def convolution_projection(weights: jax.Array, longest: int) -> jax.Array:
    """The projection that is a convolution with stride equal to its width: `weights` along every segment.

    All features of a head share the kernel. The last segment may be cut off.

    Args:
        weights: `[width]`, or `[kv_heads, width]`.
        longest: number of positions.

    Returns:
        `[⌈longest / width⌉, longest]`, or `[kv_heads, ⌈longest / width⌉, longest]`.

    Raises:
        ValueError: `weights` is empty or not a floating-point array; `longest` is below 1.

    >>> convolution_projection(np.array([1.0, 2.0]), 3)
    Array([[1., 2., 0.],
           [0., 0., 1.]], dtype=float32)
    """
    width = check_shapes(weights=(weights, "... width"))["width"]
    check_positive(longest=longest)
    if not width:
        raise ValueError(f"`weights` must hold a number at least; got shape {jnp.shape(weights)}.")
    at = np.arange(longest)
    inside = at // width == np.arange(-(-longest // width))[:, None]
    return jnp.where(inside, jnp.asarray(weights)[..., None, at % width], 0)


def _segments(longest: int, projected: int) -> np.ndarray:
    """Which positions are in which segment; if the length is not a multiple, the first segments are longer by one."""
    check_positive(longest=longest, projected=projected)
    if projected > longest:
        raise ValueError(f"`projected` must be at most `longest`, {longest}; got {projected}.")
    sizes = np.full(projected, longest // projected) + (np.arange(projected) < longest % projected)
    return np.repeat(np.arange(projected), sizes) == np.arange(projected)[:, None]


@dataclasses.dataclass(frozen=True)
class Linformer(Layer):
    """Linformer: self-attention over keys and values projected to a fixed length.

        out = linformer_attention(x W_q + b_q, x W_k + b_k, x W_v + b_v, E, F) W_o + b_o

    Wang et al. 2020 (arXiv:2006.04768), with learned E and F. Sharing of E and F: `"none"`, each head has its own E and
    F; `"heads"`, one E and one F for all heads; `"kv"`, one matrix for both; `"layers"`, also one matrix, which the
    caller keeps for all layers and passes to each call as `projection`. Pooling: `"linear"`, any matrix; `"mean"`,
    means over segments, with nothing learned; `"convolution"`, weights along a segment, the same for all segments. The
    paper's convolution has separate weights for each feature; here all features of a head share them.

    Args:
        features: features of inputs and outputs.
        heads: number of heads; must divide `features`.
        longest: the length of E and F; shorter inputs are padded with zeros.
        projected: number of mixtures of keys, at most `longest`.
        sharing: one of "none", "heads", "kv", "layers".
        pooling: one of "linear", "mean", "convolution".
        use_bias: whether the projections of features have a bias.

    Raises:
        ValueError: sizes do not match; `sharing` or `pooling` is unknown; `use_bias` is not a flag; at the call,
            `projection` is given although E belongs to the layer, or is missing although it does not.

    >>> import jax
    >>> layer = Linformer(16, heads=2, longest=64, projected=8)
    >>> parameters = layer.init(jax.random.key(0))
    >>> jax.jit(layer)(parameters, jax.numpy.ones((2, 50, 16))).shape
    (2, 50, 16)
    """

    own_axes = OWN_AXES

    features: int
    heads: int
    longest: int
    projected: int
    sharing: str = "heads"
    pooling: str = "linear"
    use_bias: bool = True

    def __post_init__(self):
        check_positive(features=self.features, heads=self.heads)
        _segments(self.longest, self.projected)
        check_flags(use_bias=self.use_bias)
        check_choice("sharing", self.sharing, SHARING)
        check_choice("pooling", self.pooling, POOLING)
        check_multiple("heads", features=self.features, heads=self.heads)
        made = -(-self.longest // self.width)
        if self.pooling == "convolution" and made != self.projected:
            raise ValueError(
                f"`projected` must be what a convolution of some width and stride makes of `longest` = {self.longest} "
                f"positions; got {self.projected}: a width of {self.width} makes {made}, one of "
                f"{max(self.width - 1, 1)} makes {-(-self.longest // max(self.width - 1, 1))}."
            )

    @property
    def width(self) -> int:
        """The number of positions in a segment of the convolution."""
        return -(-self.longest // self.projected)

    def parameters(self) -> dict[str, Any]:
        """`query`, `key`, `value`, `out`: kernels and biases; `key_projection`, `value_projection` if learned."""
        tree = multi_head_parameters(self.features, self.heads, use_bias=self.use_bias)
        if self.pooling != "mean" and self.sharing != "layers":
            tree["key_projection"] = self.projection_parameter()
            if self.sharing != "kv":
                tree["value_projection"] = self.projection_parameter()
        return tree

    def projection_parameter(self) -> Parameter:
        """The parameter of a projection: `[projected, longest]`, or `[width]` for a convolution, preceded by heads."""
        shape = (self.projected, self.longest) if self.pooling == "linear" else (self.width,)
        heads = (self.heads,) if self.sharing == "none" else ()
        return Parameter((*heads, *shape), normal(shape[-1] ** -0.5), 0)

    def __call__(
        self,
        parameters: Mapping[str, Any],
        inputs: jax.Array,
        *,
        lengths: Any = None,
        projection: Any = None,
        mask: Any = None,
        **options: Any,
    ) -> jax.Array:
        """Apply the layer; the result is `[..., length, features]`.

        Args:
            parameters: the layer's parameters.
            inputs: `[..., length, features]`.
            lengths: the number of positions that are not padding, integers `[...]`.
            projection: for `sharing="layers"`, an array of the shape of `projection_parameter()`.
            mask: rejected, as by `linformer_attention`.
            **options: as in `linformer_attention`.
        """
        check_shapes({"features": self.features}, inputs=(inputs, "... length features"))
        if (projection is not None) != (self.sharing == "layers" and self.pooling != "mean"):
            raise ValueError(
                "`projection` is for layers that share it (`sharing='layers'`) and needed there; got "
                f"{'none' if projection is None else 'one'} with sharing {self.sharing!r}, pooling {self.pooling!r}."
            )
        first = parameters.get("key_projection", projection)
        pair = [
            self._matrix(name, one)
            for name, one in (
                ("key_projection", first),
                ("value_projection", parameters.get("value_projection", first)),
            )
        ]
        out = linformer_attention(*project_heads(parameters, inputs), *pair, lengths=lengths, mask=mask, **options)
        return project(parameters["out"], out, "...qhd,hdf->...qf")

    def _matrix(self, name: str, weights: Any) -> Any:
        if self.pooling == "mean":
            return pooling_projection(self.longest, self.projected)
        if jnp.shape(weights) != self.projection_parameter().shape:
            raise ValueError(f"`{name}` must have shape {self.projection_parameter().shape}; got {jnp.shape(weights)}.")
        return weights if self.pooling == "linear" else convolution_projection(weights, self.longest)

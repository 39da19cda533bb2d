"""Nyströmformer: softmax attention through landmarks (Xiong et al. 2021)."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...foundation.arguments import check_counts, check_flags, check_multiple, check_positive
from ...foundation.arrays import of_rank
from ...foundation.numerics import accumulation_dtype
from ...foundation.shapes import check_shapes
from ...layers.layer import OWN_AXES, Layer, kernel, multi_head_parameters, project, project_heads
from ...masks import Lengths
from ...ops.attention.api import attention, attention_weights
from ...ops.attention.by_example import by_example
from ...ops.dispatch import Unsupported
from .linformer import _segments
from .padding import present, without_padding


@by_example(query="length heads dim", key="length heads dim", value="length heads dim")
def nystrom_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    landmarks: int,
    *,
    iterations: int = 6,
    convolution: jax.Array | None = None,
    lengths: Any = None,
    mask: Any = None,
) -> jax.Array:
    """Softmax attention by the Nyström method, in time and memory linear in the length:

        out = softmax(Q K̃ᵀ/√d) · softmax(Q̃ K̃ᵀ/√d)⁺ · softmax(Q̃ Kᵀ/√d) V  (+ convolution of V along the length)

    Xiong et al. 2021 (arXiv:2102.03902). Q̃ and K̃ are the means of Q and K over `landmarks` segments, and A⁺ is the
    pseudo-inverse, approximated by a third-order iteration from Z = Aᵀ / (‖A‖₁ ‖A‖_∞),

        Z ← ¼ Z (13 I - A Z (15 I - A Z (7 I - A Z))).

    With as many landmarks as positions, it converges to softmax attention as iterations increase. The outer factors are
    streamed calls of `jattn.attention`.

    Differences from the paper's code: there, the initial Z is scaled by the largest norm over all heads and sequences
    of the batch; here each matrix has its own, so that an output does not depend on the rest of the batch. Lengths need
    not be multiples of `landmarks`: the first segments are longer by one.

    A landmark mixes its whole segment, so no mask can be respected, not even a causal one.

    Args:
        query: Q, `[..., length, heads, dim]`.
        key: K, the same shape.
        value: V, `[..., length, heads, v_dim]`.
        landmarks: number of landmarks, from 1 to `length`.
        iterations: iterations of the pseudo-inverse, at least 0.
        convolution: weights `[heads, width]` of a depthwise convolution of V along the length, centered, `width` odd
            (the paper's 33); None for none.
        lengths: the number of positions that are not padding, integers `[...]` for the batch. Padding is excluded from
            the landmarks, is not attended to, and its output is 0; a landmark of padding alone is left out.
        mask: rejected.

    Returns:
        `[..., length, heads, v_dim]`, in the dtype of the value; the pseudo-inverse is computed in at least float32.

    Raises:
        ValueError: shapes do not match; there are more landmarks than positions; the width is even.
        Unsupported: a mask is given; the message gives the reason.

    >>> import jax
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (2, 50, 4, 8)) for i in range(3))
    >>> nystrom_attention(q, k, v, landmarks=8).shape
    (2, 50, 4, 8)
    """
    if mask is not None:
        raise Unsupported(
            f"Nyström attention cannot keep a `mask`, and is not causal: each landmark is the mean of a segment, later "
            f"positions among it; got {mask!r}. For padding at the end give `lengths`; for a causal model, a window "
            "(`jattn.masks.SlidingWindow`) or linear attention."
        )
    length = _check(query, key, value, landmarks, iterations, convolution)
    wide = accumulation_dtype(query, key, value)
    query, key, value = without_padding(lengths, query=query, key=key, value=value)
    inside = present(lengths, query.shape[:-3], length)
    segments = jnp.asarray(_segments(length, landmarks))
    if inside is not None:
        segments = of_rank(segments, inside.ndim + 1) & inside[..., None, :]
    count = segments.sum(-1)
    weights = segments / jnp.maximum(count, 1)[..., None]
    query_mean, key_mean = (
        jnp.einsum("...ml,...lhd->...mhd", weights, array, preferred_element_type=wide).astype(array.dtype)
        for array in (query, key)
    )
    # Segments are filled from the front, so empty landmarks are the last ones and can be masked by a length.
    between = seen_by = sees = None
    if inside is not None:
        tokens, used = inside.sum(-1), (count > 0).sum(-1)
        between, seen_by, sees = Lengths(used, used), Lengths(tokens), Lengths(used, tokens)
    middle = attention_weights(query_mean, key_mean, mask=between).astype(wide)
    inverse = pseudo_inverse(middle, iterations)
    seen = attention(query_mean, key, value.astype(wide), mask=seen_by)
    mixed = jnp.einsum("...hmn,...nhd->...mhd", inverse, seen)
    out = attention(query, key_mean, mixed, mask=sees, query_positions=np.arange(length))
    if convolution is not None:
        out = out + _convolved(value.astype(wide), jnp.asarray(convolution, wide))
        if inside is not None:
            out = jnp.where(inside[..., None, None], out, 0)
    return out.astype(value.dtype)


def pseudo_inverse(matrix: jax.Array, iterations: int = 6) -> jax.Array:
    """The iterated Moore-Penrose inverse of `[..., rows, columns]` (Razavi et al. 2014), as in `nystrom_attention`.

    The inverse of a matrix of zeros is 0.

    Raises:
        ValueError: the matrix is not floating-point, or is empty; `iterations` is negative.

    >>> import jax.numpy as jnp
    >>> print(pseudo_inverse(jnp.array([[2.0, 0.0], [0.0, 4.0]]), 8).round(3))
    [[0.5  0.  ]
     [0.   0.25]]
    """
    sizes = check_shapes(matrix=(matrix, "... rows columns"))
    check_counts(iterations=iterations)
    if not (sizes["rows"] and sizes["columns"]):
        raise ValueError(f"`matrix` must have rows and columns; got shape {matrix.shape}.")
    size = abs(matrix)
    norms = size.sum(-2).max(-1) * size.sum(-1).max(-1)
    found = matrix.swapaxes(-1, -2) / jnp.where(norms == 0, 1, norms)[..., None, None]
    identity = jnp.eye(matrix.shape[-2], dtype=matrix.dtype)

    return _iterated(matrix, found, identity, iterations)


# Without this, every call outside of `jit` would compile its loop again.
@functools.partial(jax.jit, static_argnames="iterations")
def _iterated(matrix: jax.Array, found: jax.Array, identity: jax.Array, iterations: int) -> jax.Array:
    def step(found: jax.Array, _: None) -> tuple[jax.Array, None]:
        both = matrix @ found
        inner = 15 * identity - both @ (7 * identity - both)
        return found @ (13 * identity - both @ inner) / 4, None

    return jax.lax.scan(step, found, None, length=iterations)[0]


@jax.jit
def _convolved(value: jax.Array, weights: jax.Array) -> jax.Array:
    """out_i = Σ_t weights[head, t] value_{i + t - width // 2}, zeros beyond the ends."""
    width, length = weights.shape[-1], value.shape[-3]
    padding = [(0, 0)] * (value.ndim - 3) + [(width // 2, width // 2), (0, 0), (0, 0)]
    padded = jnp.pad(value, padding)
    one = lambda t: jax.lax.dynamic_slice_in_dim(padded, t, length, padded.ndim - 3) * weights[:, t, None]  # noqa: E731
    return jax.lax.fori_loop(0, width, lambda t, total: total + one(t), jnp.zeros_like(value))


def _check(query, key, value, landmarks, iterations, convolution) -> int:
    check_positive(landmarks=landmarks)
    check_counts(iterations=iterations)
    sizes = check_shapes(
        query=(query, "... length heads dim"),
        key=(key, "... length heads dim"),
        value=(value, "... length heads v_dim"),
    )
    if landmarks > sizes["length"]:
        raise ValueError(
            f"`landmarks` must be at most the length, {sizes['length']}; got {landmarks}. Short inputs want "
            "`jattn.attention`, which costs less."
        )
    if convolution is not None:
        width = check_shapes({"heads": sizes["heads"]}, convolution=(convolution, "heads width"))["width"]
        if width % 2 == 0:
            raise ValueError(f"`convolution` must have an odd width, so that it has a center; got {width}.")
    return sizes["length"]


@dataclasses.dataclass(frozen=True)
class Nystromformer(Layer):
    """Nyströmformer: self-attention through landmarks and an iterated pseudo-inverse, by `nystrom_attention`.

        out = nystrom_attention(x W_q + b_q, x W_k + b_k, x W_v + b_v, landmarks) W_o + b_o

    Xiong et al. 2021 (arXiv:2102.03902).

    Args:
        features: features of inputs and outputs.
        heads: number of heads; must divide `features`.
        landmarks: number of landmarks, at most the length of an input.
        iterations: iterations of the pseudo-inverse.
        convolution: the width of the convolution of the values, odd; None for none.
        use_bias: whether the projections have a bias.

    Raises:
        ValueError: sizes do not match; `use_bias` is not a flag; at the call, as in `nystrom_attention`.

    >>> import jax
    >>> layer = Nystromformer(16, heads=2, landmarks=4, convolution=3)
    >>> parameters = layer.init(jax.random.key(0))
    >>> jax.jit(layer)(parameters, jax.numpy.ones((2, 9, 16))).shape
    (2, 9, 16)
    """

    own_axes = OWN_AXES

    features: int
    heads: int
    landmarks: int
    iterations: int = 6
    convolution: int | None = None
    use_bias: bool = True

    def __post_init__(self):
        check_positive(features=self.features, heads=self.heads, landmarks=self.landmarks)
        check_multiple("heads", features=self.features, heads=self.heads)
        check_flags(use_bias=self.use_bias)
        if self.convolution is not None:
            check_positive(convolution=self.convolution)
            if self.convolution % 2 == 0:
                raise ValueError(f"`convolution` must be odd, so that it has a center; got {self.convolution}.")

    def parameters(self) -> dict[str, Any]:
        """`query`, `key`, `value`, `out`: kernels and biases; `convolution.kernel [width, heads]` if there is one."""
        tree = multi_head_parameters(self.features, self.heads, use_bias=self.use_bias)
        if self.convolution is not None:
            tree["convolution"] = {"kernel": kernel(self.convolution, self.heads)}
        return tree

    def __call__(
        self, parameters: Mapping[str, Any], inputs: jax.Array, *, lengths: Any = None, mask: Any = None
    ) -> jax.Array:
        """Apply the layer; the result is `[..., length, features]`.

        Args:
            parameters: the layer's parameters.
            inputs: `[..., length, features]`.
            lengths: the number of positions that are not padding, integers `[...]`; the output of padding is
                `out.bias`.
            mask: rejected, as by `nystrom_attention`.
        """
        check_shapes({"features": self.features}, inputs=(inputs, "... length features"))
        query, key, value = project_heads(parameters, inputs)
        weights = None if self.convolution is None else parameters["convolution"]["kernel"].T
        out = nystrom_attention(
            query,
            key,
            value,
            self.landmarks,
            iterations=self.iterations,
            convolution=weights,
            lengths=lengths,
            mask=mask,
        )
        return project(parameters["out"], out, "...qhd,hdf->...qf")

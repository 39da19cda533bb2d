"""Longformer: a dilated window for each head, and a few global tokens (Beltagy et al. 2020)."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...foundation.arguments import check_flags, check_multiple, check_positive
from ...foundation.arrays import as_known
from ...foundation.fields import Integers
from ...foundation.shapes import check_shapes
from ...layers.layer import OWN_AXES, Layer, bias, kernel, project
from ...masks import Causal, Dilated
from ...masks.base import Mask, as_mask
from ...masks.flags import Flagged
from ...ops.attention.api import attention
from ...ops.attention.recording import named

Numbers = Integers | tuple[int, ...]


def longformer_mask(
    reach: Numbers,
    *,
    dilation: Numbers = 1,
    global_tokens: Any = None,
    length: int | None = None,
    causal: bool = False,
) -> Mask:
    """Longformer's pattern as a mask, for a single set of projections:

        |i - j| ≤ w · d and (i - j) mod d = 0,    or i ∈ G,    or j ∈ G        w = reach, d = dilation

    Beltagy, Peters & Cohan 2020 (arXiv:2004.05150), where `attention_window` counts both sides: 2 w. The causal form
    also requires j ≤ i. For padding, add `& Lengths(key_lengths, query_lengths)`; for packed documents,
    `& SameSegment(ids)`.

    Tiles are skipped head by head. A head with dilation visits the tiles that its window spans, w · d on either side; a
    global token adds a column and a row of tiles.

    Args:
        reach: w, keys on either side, nonnegative; an integer, or a tuple or array `[heads]`.
        dilation: d, at least 1; an integer, or a tuple or array `[heads]`.
        global_tokens: G: booleans `[..., length]`, or positions `[..., count]` (integers, -1 for none), with batch axes
            first; None for none. With NumPy arrays, the tiles are known at trace time.
        length: length of the sequence, where `global_tokens` are positions.
        causal: whether to exclude the future.

    Raises:
        ValueError: a number is below its minimum; global positions exceed `length`, or are given without it; `causal`
            is not a flag.

    >>> print(longformer_mask(1, global_tokens=[0], length=5).picture(5, 5).rsplit(chr(10), 2)[0])
    █████
    ███··
    ████·
    █·███
    █··██
    """
    check_flags(causal=causal)
    per_head = (np.asarray(one) if isinstance(one, tuple) else one for one in (reach, dilation))
    mask: Mask = Dilated(*per_head)
    if global_tokens is not None:
        flags = global_flags(global_tokens, length)
        mask = mask | Flagged(flags, flags)
    return mask & Causal() if causal else mask


def global_flags(global_tokens: Any, length: int | None = None) -> Any:
    """Booleans `[..., length]` for global tokens given as booleans or as positions `[..., count]` (-1 for none).

    Positions that are not known at trace time are not checked; those beyond `length` have no effect.

    Raises:
        ValueError: they are neither booleans nor integers; positions are given without `length`, or are outside -1 to
            `length - 1`.

    >>> global_flags([[0, 2], [1, -1]], 3).astype(int)
    array([[1, 0, 1],
           [0, 1, 0]])
    """
    tokens = as_known(global_tokens)
    if tokens.ndim == 0 or not (tokens.dtype == np.bool_ or jnp.issubdtype(tokens.dtype, np.integer)):
        raise ValueError(
            "`global_tokens` must be booleans [..., length] or positions [..., count], integers; got "
            f"{tokens.dtype} of shape {tokens.shape}."
        )
    if tokens.dtype == np.bool_:
        if length is not None and tokens.shape[-1] != length:
            raise ValueError(f"`global_tokens` must have shape [..., {length}]; got {tokens.shape}.")
        return tokens
    if length is None:
        raise ValueError("`length` must be given for `global_tokens` that are positions; got None.")
    check_positive(length=length)
    if isinstance(tokens, np.ndarray) and tokens.size and not (tokens.min() >= -1 and tokens.max() < length):
        raise ValueError(
            f"`global_tokens` must be positions from 0 to {length - 1} (-1 for none); got {tokens.min()} to "
            f"{tokens.max()}."
        )
    return (tokens[..., None] == np.arange(length)).any(-2)


@dataclasses.dataclass(frozen=True)
class Longformer(Layer):
    """Longformer: a dilated window per head, and global tokens with their own projections.

        i ∉ G:  y_i = attention(q_i; k_j, v_j)          over the window of i, and j ∈ G
        i ∈ G:  y_i = attention(q'_i; k'_j, v'_j)       over all j
        out = y W_o + b_o,    q = x W_q + b_q, ...,    q' = x W'_q + b'_q, ...

    Beltagy et al. 2020 (arXiv:2004.05150). Other tokens see a global token through its k and v, not its k' and v'. Both
    lines are calls of `jattn.attention`; each skips the rows of the other, and tiles outside the window without global
    tokens. `jattn.record` has the first under the name of the layer, and the second under `name.global`: each is 0 in
    the rows of the other, so their sum is the weights of all rows.

    Demonstrated in `examples/experiments/far_key.py`.

    Args:
        features: features of inputs and outputs.
        heads: number of heads; must divide `features`.
        reach: keys on either side of the query; the same for all heads, or a tuple with one for each.
        dilation: the step between these keys; likewise.
        causal: whether to exclude the future, in both calls.
        use_bias: whether the projections have a bias, as in the paper's models.

    Raises:
        ValueError: a size is below its minimum; heads do not divide; a tuple does not have one number per head;
            `causal` or `use_bias` is not a flag.

    >>> import jax
    >>> layer = Longformer(16, heads=2, reach=3, dilation=(1, 2))
    >>> parameters = layer.init(jax.random.key(0))
    >>> layer(parameters, jax.numpy.ones((2, 9, 16)), global_tokens=[0]).shape
    (2, 9, 16)
    """

    own_axes = OWN_AXES

    features: int
    heads: int
    reach: int | tuple[int, ...]
    dilation: int | tuple[int, ...] = 1
    causal: bool = False
    use_bias: bool = True

    def __post_init__(self):
        check_positive(features=self.features, heads=self.heads)
        check_multiple("heads", features=self.features, heads=self.heads)
        check_flags(causal=self.causal, use_bias=self.use_bias)
        for name in ("reach", "dilation"):
            value = getattr(self, name)
            if not isinstance(value, (int, tuple)):
                raise ValueError(f"`{name}` must be an int, or a tuple with one for each head; got {value!r}.")
            if isinstance(value, tuple) and len(value) != self.heads:
                raise ValueError(f"`{name}` must have one number for each of the {self.heads} heads; got {value}.")
        longformer_mask(self.reach, dilation=self.dilation)  # which checks the numbers

    def parameters(self) -> dict[str, Any]:
        """`query`, `key`, `value`, `global_query`, `global_key`, `global_value`, `out`: kernels, and biases."""
        dim = self.features // self.heads
        names = [f"{prefix}{name}" for prefix in ("", "global_") for name in ("query", "key", "value")]
        tree: dict[str, Any] = {name: {"kernel": kernel(self.features, self.heads, dim)} for name in names}
        tree["out"] = {"kernel": kernel(self.heads, dim, self.features, inputs=2)}
        if self.use_bias:
            for name in names:
                tree[name]["bias"] = bias(self.heads, dim)
            tree["out"]["bias"] = bias(self.features)
        return tree

    def __call__(
        self,
        parameters: Mapping[str, Any],
        inputs: jax.Array,
        *,
        global_tokens: Any = None,
        mask: Mask | Any = None,
        **options: Any,
    ) -> jax.Array:
        """Apply the layer; the result is `[..., length, features]`.

        Args:
            parameters: the layer's parameters.
            inputs: x, `[..., length, features]`.
            global_tokens: G, as in `longformer_mask`.
            mask: restricts both calls further: `Lengths(lengths, lengths)` for padding, whose output is `out.bias`;
                `SameSegment(ids)` for packed documents, where a global token sees only its own document.
            **options: arguments of `jattn.attention`, for both: `query_positions`, `dropout`, `implementation`, ...

        Raises:
            ValueError: shapes do not match; as in `longformer_mask` and `jattn.attention`.
        """
        length = check_shapes({"features": self.features}, inputs=(inputs, "... length features"))["length"]
        own = longformer_mask(self.reach, dilation=self.dilation)
        flags = None if global_tokens is None else global_flags(global_tokens, length)
        limits = [Causal()] * self.causal + ([] if mask is None else [as_mask(mask)])

        def attend(prefix: str, mask: Mask) -> jax.Array:
            query, key, value = (
                project(parameters[prefix + name], inputs, "...nf,fhd->...nhd") for name in ("query", "key", "value")
            )
            for limit in limits:
                mask = mask & limit
            with named("global") if prefix else contextlib.nullcontext():
                return attention(query, key, value, mask=mask, **options)

        if flags is None:
            heads = attend("", own)
        else:
            rows = Flagged(query_flags=flags)
            # Rows that may attend to nothing are 0, so the two calls can be added.
            heads = attend("", (own | Flagged(key_flags=flags)) & ~rows) + attend("global_", rows)
        return project(parameters["out"], heads, "...qhd,hdf->...qf")

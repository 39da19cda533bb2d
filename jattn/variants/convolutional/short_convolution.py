"""A short causal convolution, one filter a channel, with what it remembers between calls."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...foundation.shapes import check_positive, check_shapes
from ...layers.layer import OWN_AXES, Layer, bias, normal


class Shifts(NamedTuple):
    """A sequence beside itself, shifted.

    values: the tokens themselves, those one before, ..., each `[..., length, features]`. Where there is none, in front
        of the sequence or of a segment, it is 0; NaN and inf are 0, too.
    broken: where they were NaN or inf, alike.
    past: the last tokens, `[..., taps - 1, features]`, for a call that goes on; of the last segment.
    """

    values: list[jax.Array]
    broken: list[jax.Array]
    past: jax.Array


def shifts(inputs: jax.Array, taps: int, past: jax.Array | None = None, segment_ids: Any = None) -> Shifts:
    """The last `taps` tokens at every position.

    NaN and inf are kept apart, so that the gradient of an output that does not see one has no 0 times it.

    Args:
        inputs: `[..., length, features]`.
        taps: how many, the token itself among them.
        past: the `taps - 1` tokens before the first, `[..., taps - 1, features]`; by default zeros. They belong to the
            first segment.
        segment_ids: `[..., length]` or `[length]`, equal where tokens see one another.
    """
    length = inputs.shape[-2]
    if past is None:
        past = jnp.zeros((*inputs.shape[:-2], taps - 1, inputs.shape[-1]), inputs.dtype)
    joined = jnp.concatenate([past.astype(inputs.dtype), inputs], -2)
    broken = ~jnp.isfinite(joined)
    clean = jnp.where(broken, 0, joined)
    ids = None
    if segment_ids is not None and length:
        ids = jnp.broadcast_to(jnp.asarray(segment_ids), inputs.shape[:-1])
        ids = jnp.concatenate([jnp.repeat(ids[..., :1], taps - 1, -1), ids], -1)[..., None]

    def shifted(array: jax.Array, by: int) -> jax.Array:
        begin = taps - 1 - by
        moved = array[..., begin : begin + length, :]
        if ids is None or by == 0:
            return moved
        return jnp.where(ids[..., begin : begin + length, :] == ids[..., taps - 1 :, :], moved, 0)

    last = joined[..., length:, :]
    if ids is not None:
        last = jnp.where(ids[..., length:, :] == ids[..., -1:, :], last, 0)
    wide = jnp.promote_types(inputs.dtype, jnp.float32)
    return Shifts(
        [shifted(clean, by) for by in range(taps)], [shifted(broken, by) for by in range(taps)], last.astype(wide)
    )


def short_convolution(
    inputs: jax.Array, kernel: jax.Array, past: jax.Array | None = None, segment_ids: Any = None
) -> jax.Array:
    """A causal convolution with a few taps: out_t = Σ_s kernel_s inputs_{t-s}.

    Args:
        inputs: `[..., length, features]`.
        kernel: `[taps, features]`, the tap of the input itself first.
        past: the `taps - 1` inputs before the first, `[..., taps - 1, features]`; by default zeros. They belong to the
            first segment.
        segment_ids: `[..., length]` or `[length]`; inputs of other segments count as zeros.

    Returns:
        `[..., length, features]`. An output is NaN where an input that it sees is NaN or inf; others are not touched.

    Raises:
        ValueError: shapes that do not fit; no taps.

    >>> import jax.numpy as jnp
    >>> print(short_convolution(jnp.array([[1.0], [0.0], [2.0]]), jnp.array([[1.0], [0.5]]))[:, 0])
    [1.  0.5 2. ]
    """
    return _convolve(inputs, kernel, past, segment_ids)[0]


def _convolve(inputs: jax.Array, kernel: jax.Array, past: Any, segment_ids: Any) -> tuple[jax.Array, jax.Array]:
    sizes = check_shapes(inputs=(inputs, "... length features"), kernel=(kernel, "taps features"))
    taps = sizes["taps"]
    if taps < 1:
        raise ValueError(f"`kernel` must have at least one tap, [taps, features]; got shape {kernel.shape}.")
    if past is not None:
        check_shapes(
            {"features": sizes["features"]},
            past=(past, f"... {taps - 1} features"),
            inputs=(inputs, "... length features"),
        )
    if segment_ids is not None and jnp.shape(segment_ids) not in ((sizes["length"],), inputs.shape[:-1]):
        raise ValueError(
            f"`segment_ids` must have shape [length] or [..., length] of `inputs` {inputs.shape}; got "
            f"{jnp.shape(segment_ids)}."
        )
    seen = shifts(inputs, taps, past, segment_ids)
    out = jnp.asarray(sum(one * kernel[s] for s, one in enumerate(seen.values)))
    broken = jnp.stack(seen.broken).any(0)
    return jnp.where(broken, jnp.nan, out).astype(inputs.dtype), seen.past


@dataclasses.dataclass(frozen=True)
class ShortConvolution(Layer):
    """`short_convolution` with its filters, as recurrent layers have it before queries, keys and values.

    Args:
        channels: of inputs and outputs, each with a filter of its own.
        taps: of a filter.
        use_bias: whether to add a number for each channel.

    Raises:
        ValueError: sizes below 1.

    >>> import jax
    >>> layer = ShortConvolution(6, 4)
    >>> out, past = jax.jit(layer)(layer.init(jax.random.key(0)), jax.numpy.ones((2, 10, 6)))
    >>> out.shape, past.shape
    ((2, 10, 6), (2, 3, 6))
    """

    own_axes = OWN_AXES

    channels: int
    taps: int = 4
    use_bias: bool = False

    def __post_init__(self):
        check_positive(channels=self.channels, taps=self.taps)

    def parameters(self) -> dict[str, Any]:
        """`kernel [taps, channels]`, and perhaps `bias [channels]`."""
        made = {"kernel": bias(self.taps, self.channels, init=normal(self.taps**-0.5))}
        return {**made, "bias": bias(self.channels)} if self.use_bias else made

    def __call__(
        self, parameters: Mapping[str, Any], inputs: jax.Array, past: jax.Array | None = None, segment_ids: Any = None
    ) -> tuple[jax.Array, jax.Array]:
        """The outputs `[..., length, channels]`, and the last `taps - 1` inputs, the `past` of the next call."""
        out, past = _convolve(inputs, parameters["kernel"], past, segment_ids)
        return out + parameters["bias"].astype(out.dtype) if self.use_bias else out, past

    def of_heads(
        self, parameters: Mapping[str, Any], arrays: Sequence[jax.Array], past: jax.Array | None, segment_ids: Any
    ) -> tuple[list[jax.Array], jax.Array]:
        """The convolution of several arrays `[..., length, heads, dim]`, their channels one after the other; swish."""
        sizes = [array.shape[-2] * array.shape[-1] for array in arrays]
        flat = [array.reshape(*array.shape[:-2], size) for array, size in zip(arrays, sizes, strict=True)]
        out, past = self(parameters, jnp.concatenate(flat, -1), past, segment_ids)
        parts = jnp.split(jax.nn.silu(out), np.cumsum(sizes)[:-1], -1)
        return [part.reshape(array.shape) for part, array in zip(parts, arrays, strict=True)], past

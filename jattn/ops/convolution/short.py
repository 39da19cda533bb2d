"""A short causal convolution, one filter per channel, with a state between calls."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ...foundation.arrays import as_array, as_jax, describe, dtype_of
from ...foundation.numerics import split_nonfinite, widen
from ...foundation.shapes import check_shapes


class Shifts(NamedTuple):
    """A sequence and its shifted copies.

    values: the tokens themselves, the previous tokens, and so on, each `[..., length, features]`. Tokens before the
        sequence or the segment are 0, and so are NaN and inf.
    nonfinite: where they were NaN or inf, likewise.
    past: the last tokens of the last segment, `[..., taps - 1, features]`, for the next call.
    """

    values: list[jax.Array]
    nonfinite: list[jax.Array]
    past: jax.Array


def shifts(inputs: jax.Array, taps: int, past: jax.Array | None = None, segment_ids: Any = None) -> Shifts:
    """The last `taps` tokens at every position.

    NaN and inf are returned separately, so that the gradient of an output that does not depend on them has no 0 * NaN.

    Args:
        inputs: `[..., length, features]`.
        taps: the number of tokens, including the current one.
        past: the `taps - 1` tokens before the first, `[..., taps - 1, features]`; by default zeros. They belong to the
            first segment.
        segment_ids: `[..., length]` or `[length]`; tokens see only tokens with the same id.
    """
    length = inputs.shape[-2]
    if past is None:
        past = jnp.zeros((*inputs.shape[:-2], taps - 1, inputs.shape[-1]), inputs.dtype)
    joined = jnp.concatenate([past.astype(inputs.dtype), inputs], -2)
    clean, nonfinite = split_nonfinite(joined)
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
    return Shifts(
        [shifted(clean, by) for by in range(taps)], [shifted(nonfinite, by) for by in range(taps)], widen(last)
    )


def short_convolution(
    inputs: Float[jax.Array, "*batch length features"],
    kernel: Float[jax.Array, "taps features"],
    past: Float[jax.Array, "*batch past features"] | None = None,
    segment_ids: Any = None,
) -> Float[jax.Array, "*batch length features"]:
    """A causal convolution with a few taps: out_t = Σ_s kernel_s inputs_{t-s}.

    Hyena (Poli et al. 2023, arXiv:2302.10866) and most recurrent layers put one before their queries, keys and values.

    Args:
        inputs: `[..., length, features]`.
        kernel: `[taps, features]`; the first tap applies to the current input.
        past: the `taps - 1` inputs before the first, `[..., taps - 1, features]`; by default zeros. They belong to the
            first segment.
        segment_ids: integers `[..., length]` or `[length]`; inputs of other segments count as zeros.

    Returns:
        `[..., length, features]`, in the dtype of `inputs`. An output is NaN if an input that it depends on is NaN or
        inf; others are unaffected.

    Raises:
        ValueError: the shapes or dtypes do not match, or there are no taps.

    >>> import jax.numpy as jnp
    >>> print(short_convolution(jnp.array([[1.0], [0.0], [2.0]]), jnp.array([[1.0], [0.5]]))[:, 0])
    [1.  0.5 2. ]
    """
    return convolve(inputs, kernel, past, segment_ids)[0]


def convolve(inputs: jax.Array, kernel: jax.Array, past: Any, segment_ids: Any) -> tuple[jax.Array, jax.Array]:
    """`short_convolution`, and the last `taps - 1` inputs, which are the `past` of the next call."""
    sizes = check_shapes(inputs=(inputs, "... length features"), kernel=(kernel, "taps features"))
    inputs, kernel, past, segment_ids = as_jax(inputs, kernel, past, as_array(segment_ids))
    taps = sizes["taps"]
    if taps < 1:
        raise ValueError(f"`kernel` must have at least one tap, [taps, features]; got shape {kernel.shape}.")
    if past is not None:
        check_shapes(
            {"features": sizes["features"]},
            past=(past, f"... {taps - 1} features"),
            inputs=(inputs, "... length features"),
        )
    if segment_ids is not None:
        dtype, shapes = dtype_of(segment_ids), ((sizes["length"],), inputs.shape[:-1])
        if dtype is None or not jnp.issubdtype(dtype, jnp.integer) or tuple(segment_ids.shape) not in shapes:
            raise ValueError(
                f"`segment_ids` must be integers [length] or [..., length] of `inputs` {inputs.shape}, one for each "
                f"token; got {describe(segment_ids)}."
            )
    seen = shifts(inputs, taps, past, segment_ids)
    out = jnp.asarray(sum(one * kernel[s] for s, one in enumerate(seen.values)))
    nonfinite = jnp.stack(seen.nonfinite).any(0)
    return jnp.where(nonfinite, jnp.nan, out).astype(inputs.dtype), seen.past

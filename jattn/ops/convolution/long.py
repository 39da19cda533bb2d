"""A causal convolution with filters as long as the sequence, one per channel, by FFT."""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ...foundation.arrays import as_jax
from ...foundation.numerics import seen_so_far, split_nonfinite, widen
from ...foundation.shapes import check_shapes


def long_convolution(
    inputs: Float[jax.Array, "*batch length features"],
    filters: Float[jax.Array, "taps features"],
    skip: Float[jax.Array, " features"] | None = None,
) -> Float[jax.Array, "*batch length features"]:
    """A causal convolution with filters as long as the sequence, in O(n log n) time.

        out_t = Σ_{s ≤ t} filters_s inputs_{t-s} + skip inputs_t

    The convolution of Hyena (Poli et al. 2023, arXiv:2302.10866). By a real FFT of at least `length + taps - 1`
    numbers, so that nothing wraps around. Computed in float32 (float64 for float64 inputs); rounding errors are
    relative to the largest number of the channel, not to each output. Although an FFT mixes all positions, NaN and inf
    stay causal: outputs of their channel are NaN from their position on, and earlier outputs are unaffected.

    Args:
        inputs: `[..., length, features]`.
        filters: `[taps, features]`; the first tap applies to the current input. Taps past the length have no effect.
        skip: `[features]`.

    Returns:
        `[..., length, features]`, in the dtype of `inputs`.

    Raises:
        ValueError: the shapes do not match.

    >>> import jax.numpy as jnp
    >>> print(long_convolution(jnp.array([[1.0], [0.0], [2.0]]), jnp.array([[1.0], [0.5], [0.25]]))[:, 0].round(3))
    [1.   0.5  2.25]
    """
    shapes = {"inputs": (inputs, "... length features"), "filters": (filters, "taps features")}
    sizes = check_shapes(**shapes, **({} if skip is None else {"skip": (skip, "features")}))
    inputs, filters, skip = as_jax(inputs, filters, skip)
    length = sizes["length"]
    if length == 0:
        return inputs
    taps = min(sizes["taps"], length)
    clean, nonfinite = split_nonfinite(widen(inputs))
    filters = filters[:taps].astype(clean.dtype)
    size = _fast_size(length + max(taps, 1) - 1)
    product = jnp.fft.rfft(clean, size, axis=-2) * jnp.fft.rfft(filters, size, axis=-2)
    out = jnp.fft.irfft(product, size, axis=-2)[..., :length, :]
    if skip is not None:
        out = out + skip.astype(clean.dtype) * clean
    return jnp.where(seen_so_far(nonfinite), jnp.nan, out).astype(inputs.dtype)


def _fast_size(least: int) -> int:
    """The smallest number of at least `least` without a prime factor above 5."""
    size = max(least, 1)
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1

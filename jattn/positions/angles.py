"""The angle position * θ modulo a full turn, without loss of precision at large positions.

In float32, the product of a position and a frequency has a relative error of about 6e-8. At position 2^20 that is an
absolute error of 0.06 radians, which is also the error of its sine. Here a frequency is instead stored as a fixed-point
fraction of a turn,

    F = round(2^64 θ / 2π) mod 2^64.

The product position * F mod 2^64 is the angle as a fraction of a turn: overflow drops whole turns. It takes five 32-bit
integer products. The upper 32 bits, read as a signed integer, are the angle in [-π, π) in steps of 1.5e-9.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arrays import known_values, of_rank

_LARGEST = 2**31 - 1


def turned_angles(positions: Any, frequencies: Any, dtype: Any) -> jax.Array:
    """The angles positions * frequencies `[..., n]`, up to whole turns.

    For frequencies known at trace time (NumPy) and integer positions up to 2^24, they are correct to 5e-7 in float32.
    JAX arrays of frequencies (traced or learned) are multiplied in `dtype`, with a relative error of about 6e-8. For
    fractional positions the product of the fraction is added, so the angle is differentiable in floating-point
    positions.

    Args:
        positions: `[...]`, integers or floats of at least 32 bits (see `check_numbers`).
        frequencies: θ `[n]`, in radians per position.
        dtype: the dtype of the result, float32 or float64.
    """
    if isinstance(frequencies, jax.Array) or dtype == jnp.float64:
        return jnp.asarray(positions).astype(dtype)[..., None] * jnp.asarray(frequencies, dtype)
    frequencies = np.asarray(frequencies, np.float64)
    if jnp.issubdtype(positions.dtype, jnp.integer):
        return _of_integers(positions, frequencies).astype(dtype)
    xp = np if isinstance(positions, np.ndarray) else jnp
    whole = xp.floor(positions)
    rest = jnp.asarray(positions - whole, dtype)[..., None] * jnp.asarray(frequencies, dtype)
    return _of_integers(whole.astype(np.int32), frequencies).astype(dtype) + rest


def check_numbers(positions: Any) -> Any:
    """Check positions and return them as an array in which neighboring positions are distinct.

    Raises:
        ValueError: positions are booleans, complex numbers, or floats of 16 bits or fewer; or integers that are known
            to be out of int32's range.
    """
    positions = positions if isinstance(positions, jax.Array) else np.asarray(positions)
    dtype = positions.dtype
    if not (jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)):
        raise ValueError(f"`positions` must be numbers; got an array of dtype {dtype} and shape {positions.shape}.")
    if jnp.issubdtype(dtype, jnp.floating):
        if jnp.finfo(dtype).bits < 32:
            exact = 2 ** (jnp.finfo(dtype).nmant + 1)
            raise ValueError(
                f"`positions` must be integers, or floats of at least 32 bits; got {dtype}, in which neighbors beyond "
                f"{exact} are the same number. Make them as integers: `jnp.arange(length)`."
            )
        return positions
    if jnp.iinfo(dtype).bits < 32:
        return positions.astype(np.int32)
    if dtype == np.int32:
        return positions
    known = known_values(positions)
    if known is None:
        return positions
    if known.size and (int(known.min()) < -_LARGEST - 1 or int(known.max()) > _LARGEST):
        raise ValueError(
            f"`positions` must be integers of 32 bits, from {-_LARGEST - 1} to {_LARGEST}; got values from "
            f"{known.min()} to {known.max()}. Count from the first token of the sequence."
        )
    return positions.astype(np.int32)


def _of_integers(positions: Any, frequencies: np.ndarray) -> jax.Array:
    """The angles of integer positions, `[..., n]` in [-π, π), float32."""
    fractions = np.asarray([int(turn % 1 * 2.0**64) % 2**64 for turn in frequencies / (2 * np.pi)], np.uint64)
    positions = jnp.asarray(positions)[..., None]
    fractions = of_rank(fractions, positions.ndim)
    if positions.dtype in (jnp.int64, jnp.uint64):
        left = ((positions.astype(jnp.uint64) * fractions) >> np.uint64(32)).astype(jnp.uint32)
    else:
        left = _upper_half(positions, fractions)
    step = np.float32(2 * np.pi / 2**32)
    return jax.lax.bitcast_convert_type(left, jnp.int32).astype(jnp.float32) * step


def _upper_half(positions: jax.Array, fractions: np.ndarray) -> jax.Array:
    """Bits 32 to 63 of positions * fractions, from products that fit in 32 bits."""
    high, low = (fractions >> np.uint64(32)).astype(np.uint32), fractions.astype(np.uint32)
    low_high, low_low = low >> np.uint32(16), low & np.uint32(0xFFFF)
    unsigned = positions.astype(jnp.uint32)
    p_high, p_low = unsigned >> 16, unsigned & np.uint32(0xFFFF)
    middle = p_high * low_low + (p_low * low_low >> 16)
    carry = p_low * low_high + (middle & np.uint32(0xFFFF))
    product = unsigned * high + p_high * low_high + (middle >> 16) + (carry >> 16)
    if not jnp.issubdtype(positions.dtype, jnp.signedinteger):
        return product
    # A negative position, read as unsigned, is 2^32 too large.
    return product - jnp.where(positions < 0, low, np.uint32(0))

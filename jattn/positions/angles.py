"""The angle position * θ modulo a full turn, without losing digits at large positions.

In float32 the product of a position and a frequency has an error of about 6e-8 times itself: at position 2^20 that is
0.06 radians, and a sine of it is wrong by as much. Here a frequency is a fixed-point fraction of a turn,

    F = round(2^64 θ / 2π) mod 2^64,

and position * F mod 2^64, the fraction of a turn that is left, takes five products of 32-bit integers. They wrap around
as whole turns do. Its upper 32 bits, as a signed number, are the angle in [-π, π) in steps of 1.5e-9.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arrays import known_values, of_rank

_LARGEST = 2**31 - 1


def turned_angles(positions: Any, frequencies: Any, dtype: Any) -> jax.Array:
    """The angles positions * frequencies `[..., n]`, up to whole turns.

    Frequencies that are known (NumPy) give them to 5e-7 for whole positions up to 2^24, in float32. Frequencies that
    are traced or learned, arrays of JAX, are multiplied in `dtype`: the error then is about 6e-8 times the angle. A
    fraction of a position adds its own product, so that the angle is differentiable in positions that are floats.

    Args:
        positions: `[...]`, integers or floats of at least 32 bits (see `check_numbers`).
        frequencies: θ `[n]`, radians per position.
        dtype: float32 or float64, of the result.
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
    """Positions as an array of numbers, each of which is told from its neighbors.

    Raises:
        ValueError: booleans or complex numbers; floats of 16 bits or fewer; integers outside int32, as far as values
            are known.
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
    """The angles `[..., n]` in [-π, π), float32."""
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
    # As an unsigned number a negative position is 2^32 too large.
    return product - jnp.where(positions < 0, low, np.uint32(0))

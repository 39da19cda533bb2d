"""Argument checks shared by scores, similarities and normalizers.

Shapes and dtypes are always checked. Values are checked only where they are known at trace time; traced values pass.
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arrays import describe, dtype_of, known_values
from ..foundation.pieces import Piece

Numbers = float | np.ndarray | jax.Array
"""A Python number (static), or a floating-point array (a pytree leaf)."""


def set_field(piece: Piece, name: str, value: Any) -> None:
    """Set a field of a frozen piece. For use in its `__post_init__`."""
    object.__setattr__(piece, name, value)


def floats(name: str, value: Any, axes: tuple[str, ...], *, shared: tuple[str, ...] = (), remedy: str = "") -> Any:
    """Check a floating-point array with the axes `[batch..., *axes]` and return it.

    Args:
        name: the argument's name, for error messages.
        value: an array, a tracer, a `ShapeDtypeStruct`, or nested lists of numbers.
        axes: the axes that the field declares.
        shared: leading axes that the caller may omit; they are inserted with size 1.
        remedy: a hint that is added to error messages.

    Raises:
        ValueError: `value` is not floating-point, or has too few axes.
    """
    if isinstance(value, (list, tuple, int, float)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, TypeError):  # anything that is not numeric is refused below
            value = np.asarray(value, np.float32)
    dtype, shape = dtype_of(value), getattr(value, "shape", None)
    optional = ", ".join(f"{axis} (may be left out)" if axis in shared else axis for axis in axes)
    wanted = f"`{name}` must be a floating-point array [batch..., {optional}]"
    if dtype is None or shape is None or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{wanted}; got {describe(value)}. {remedy}".rstrip())
    missing = len(axes) - len(shape)
    if missing > 0 and set(axes[:missing]) <= set(shared):
        return _reshape(value, (1,) * missing + tuple(shape))
    if missing > 0:
        raise ValueError(
            f"{wanted}; got shape {tuple(shape)}. Which axes are missing is not guessed: give every axis, with size 1 "
            f"where it is shared. {remedy}".rstrip()
        )
    return value


def parameter(name: str, value: Any, *, least: float | None = None, above: float | None = None) -> Any:
    """Check a number or a floating-point array `[batch..., heads]`. Returns a float or an array with a head axis.

    Raises:
        ValueError: `value` is neither, or is known to be not finite, below `least`, or not above `above`.
    """
    bound = "" if least is None and above is None else f" of at least {least}" if above is None else f" above {above}"
    wanted = f"`{name}` must be a number{bound}, or a floating-point array of such numbers [batch..., head]"
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = float(value)
        known = np.asarray(value)
    else:
        if isinstance(value, (bool, str)) or value is None:
            raise ValueError(f"{wanted}; got {describe(value)}.")
        value = floats(name, value, ("head",), shared=("head",))
        known = known_values(value)
    if known is None or not known.size:
        return value
    known = known.astype(np.float64)
    outside = (least is not None and (known < least).any()) or (above is not None and (known <= above).any())
    if outside or not np.isfinite(known).all():
        got = f"{value}" if isinstance(value, float) else f"values from {known.min()} to {known.max()}"
        raise ValueError(f"{wanted}, finite; got {got}.")
    return value


def _reshape(value: Any, shape: tuple[int, ...]) -> Any:
    if isinstance(value, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(shape, value.dtype)
    return value.reshape(shape)

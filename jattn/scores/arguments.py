"""What a score, similarity or normalizer may be given: one check of floating-point numbers and arrays.

Shapes and dtypes are checked of anything that has them; values only where they are known, so a tracer passes.
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arrays import describe, dtype_of, known_values
from ..foundation.pieces import Piece

Numbers = float | np.ndarray | jax.Array
"""A Python number (static), or a floating-point array (a leaf)."""


def set_field(piece: Piece, name: str, value: Any) -> None:
    """Set a field of a frozen piece, from its `__post_init__`."""
    object.__setattr__(piece, name, value)


def floats(name: str, value: Any, axes: tuple[str, ...], *, shared: tuple[str, ...] = (), remedy: str = "") -> Any:
    """The floating-point array `value` with the axes `[batch..., *axes]`.

    Args:
        name: of the argument, for the message.
        value: an array, a tracer, a `ShapeDtypeStruct`, or nested lists of numbers.
        axes: the axes that the field declares.
        shared: those that may be left out in front; they are put in with size 1.
        remedy: added to the message.

    Raises:
        ValueError: not floating-point, or too few axes.
    """
    if isinstance(value, (list, tuple, int, float)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, TypeError):  # what is no array of numbers is refused below
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
    """A Python number (a float from here on), or a floating-point array `[batch..., head]`; 0-d stands for all heads.

    Raises:
        ValueError: neither; not finite; below `least`, or not above `above`, as far as values are known.
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

"""Argument checks for the fields of pieces: integers, booleans and floating-point numbers.

Shapes and dtypes are always checked. Values are checked only where they are known at trace time; traced values pass.
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .arrays import as_array, describe, dtype_of, known_values
from .pieces import Piece

LARGEST = 2**31 - 1  # positions are int32
Integers = int | np.ndarray | jax.Array
"""A Python int (static), or an integer array (a pytree leaf)."""
Numbers = float | np.ndarray | jax.Array
"""A Python number (static), or a floating-point array (a pytree leaf)."""


def set_field(piece: Piece, name: str, value: Any) -> None:
    """Set a field of a frozen piece. For use in its `__post_init__`."""
    object.__setattr__(piece, name, value)


def integers(name: str, value: Any, least: int, axes: str = "") -> Any:
    """Check an int or an integer array and return it. With `axes`, a 0-d array becomes an array of shape `(1,)`.

    Args:
        name: the argument's name, for error messages.
        value: an int, an array, a tracer or a `ShapeDtypeStruct`.
        least: the smallest value allowed.
        axes: the trailing axes that an array has after its batch axes, for error messages.

    Raises:
        ValueError: `value` is not an integer, or is known to be outside of `least` to `LARGEST`.
    """
    wanted = f"`{name}` must be an integer of at least {least}"
    if axes:
        wanted += f", or an array of such integers with the axes [batch..., {axes}]"
    value = as_array(value)
    if isinstance(value, (np.ndarray, np.integer)) and value.ndim == 0 and np.issubdtype(value.dtype, np.integer):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if not least <= value <= LARGEST:
            raise ValueError(f"{wanted} and at most {LARGEST} (positions are int32); got {value}.")
        return value
    dtype = dtype_of(value)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"{wanted}; got {describe(value)}.")
    may_be_outside = np.iinfo(dtype).min < least or np.iinfo(dtype).max > LARGEST
    known = known_values(value) if may_be_outside else None  # reading values blocks until a jax.Array is computed
    if known is not None and known.size:
        low, high = int(known.min()), int(known.max())
        if low < least or high > LARGEST:
            raise ValueError(
                f"{wanted}, at most {LARGEST} (positions are int32); got an array of shape {known.shape} with values "
                f"from {low} to {high}."
            )
    array: Any = value
    return array.reshape((1,)) if axes and array.shape == () and hasattr(array, "reshape") else array


def size(name: str, value: Any) -> int:
    """Check a Python int of at least 1 that determines the shape of the mask, such as the side of a grid."""
    if isinstance(value, np.integer):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
        raise ValueError(f"`{name}` must be a Python integer of at least 1; got {describe(value)}.")
    return value


def sizes(name: str, value: Any, axes: int | None = None) -> tuple[int, ...]:
    """Check a tuple of Python ints of at least 1. If `axes` is given, a single int is repeated for every axis."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and axes is not None:
        value = (value,) * axes
    if not isinstance(value, (tuple, list)):
        raise ValueError(f"`{name}` must be a tuple of integers; got {describe(value)}.")
    if axes is not None and len(value) != axes:
        raise ValueError(f"`{name}` must have one integer for each of the {axes} axes of the grid; got {value}.")
    return tuple(size(f"{name}[{axis}]", item) for axis, item in enumerate(value))


def block_sizes(value: Any, *, both: bool = False) -> Any:
    """The sizes of a query block and a key block: one Python int for both, or a tuple of two.

    Args:
        value: the argument as given by the caller, or as returned by an earlier call of this function.
        both: always return a tuple.
    """
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"`size` must be an integer, or (of query blocks, of key blocks); got {value!r}.")
        return sizes("size", value)
    one = size("size", value)
    return (one, one) if both else one


def zeros_and_ones(name: str, value: Any, layout: str, remedy: str) -> Any:
    """Convert an array of zeros and ones (integers or booleans) with at least one axis to booleans.

    Args:
        name: the argument's name, for error messages.
        value: the array.
        layout: its axes, for error messages.
        remedy: a hint that is added to error messages.

    Raises:
        ValueError: `value` has another dtype, has no axis, or is known to contain other numbers.
    """
    value = as_array(value)
    dtype = dtype_of(value)
    wanted = f"`{name}` must be an array of ones and zeros {layout}, integers or booleans"
    if dtype is None or not value.shape or not (dtype == np.bool_ or jnp.issubdtype(dtype, jnp.integer)):
        raise ValueError(f"{wanted}; got {describe(value)}. {remedy}")
    if dtype == np.bool_ or isinstance(value, jax.ShapeDtypeStruct):
        return value
    known = known_values(value)
    if known is not None and ((known != 0) & (known != 1)).any():
        raise ValueError(f"{wanted}; got values from {known.min()} to {known.max()}. {remedy}")
    return value != 0


def booleans(name: str, value: Any, axes: tuple[str, ...], remedy: str) -> Any:
    """Check a boolean array that has at least the given trailing axes.

    Raises:
        ValueError: `value` is not boolean (the message ends with `remedy`), or has too few axes.
    """
    value = as_array(value)
    layout = f"[batch..., {', '.join(axes)}]"
    dtype = dtype_of(value)
    if dtype is None or dtype != np.bool_:
        raise ValueError(f"`{name}` must be a boolean array {layout}; got {describe(value)}. {remedy}")
    if len(value.shape) < len(axes):
        raise ValueError(
            f"`{name}` must have the axes {layout}; got shape {value.shape}. Which axes are missing is not guessed: "
            f"give every axis, with size 1 where it is shared, as in `{name}[None]`."
        )
    return value


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

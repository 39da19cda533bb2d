"""What a mask may be given: one check of integers and booleans for every mask's constructor.

Shapes and dtypes are checked of anything that has them; values only where they are known, so a tracer passes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arrays import as_array, describe, dtype_of, known_values
from .base import Mask

LARGEST = 2**31 - 1  # positions are int32
Integers = int | np.ndarray | jax.Array
"""A Python integer (static), or an integer array (a leaf)."""


def set_field(mask: Mask, name: str, value: Any) -> None:
    """Set a field of a frozen mask, from its `__post_init__`."""
    object.__setattr__(mask, name, value)


def integers(name: str, value: Any, least: int, axes: str = "") -> Any:
    """The integer or integer array `value`; a 0-d array with `axes` is given a size-1 axis, which is what it means.

    Raises:
        ValueError: not an integer, or one out of the range `least` to `LARGEST`.
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
    known = known_values(value) if may_be_outside else None  # reading the values of a jax.Array waits for them
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
    """A static integer of at least 1: something that shapes the mask, such as the sides of a grid."""
    if isinstance(value, np.integer):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
        raise ValueError(f"`{name}` must be a Python integer of at least 1; got {describe(value)}.")
    return value


def sizes(name: str, value: Any, axes: int | None = None) -> tuple[int, ...]:
    """A tuple of static integers of at least 1; one integer is repeated for all `axes`, if their number is given."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and axes is not None:
        value = (value,) * axes
    if not isinstance(value, (tuple, list)):
        raise ValueError(f"`{name}` must be a tuple of integers; got {describe(value)}.")
    if axes is not None and len(value) != axes:
        raise ValueError(f"`{name}` must have one integer for each of the {axes} axes of the grid; got {value}.")
    return tuple(size(f"{name}[{axis}]", item) for axis, item in enumerate(value))


def block_sizes(value: Any, *, both: bool = False) -> Any:
    """The sizes of query blocks and of key blocks: one Python integer for both, or a tuple of two.

    Args:
        value: as it was given, or as it was returned.
        both: whether to return a tuple in either case.
    """
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"`size` must be an integer, or (of query blocks, of key blocks); got {value!r}.")
        return sizes("size", value)
    one = size("size", value)
    return (one, one) if both else one


def zeros_and_ones(name: str, value: Any, layout: str, remedy: str) -> Any:
    """The boolean array of an array of ones and zeros (integers or booleans) with at least one axis.

    Raises:
        ValueError: another dtype, no axis, or other numbers as far as they are known (with `remedy`).
    """
    value = as_array(value)
    dtype = dtype_of(value)
    wanted = f"`{name}` must be an array of ones and zeros {layout}, integers or booleans"
    if dtype is None or not value.shape or not (dtype == np.bool_ or jnp.issubdtype(dtype, jnp.integer)):
        raise ValueError(f"{wanted}; got {describe(value)}. {remedy}")
    if dtype == np.bool_:
        return value
    known = known_values(value)
    if known is not None and ((known != 0) & (known != 1)).any():
        raise ValueError(f"{wanted}; got values from {known.min()} to {known.max()}. {remedy}")
    return value != 0


def booleans(name: str, value: Any, axes: tuple[str, ...], remedy: str) -> Any:
    """The boolean array `value` with at least the given axes.

    Raises:
        ValueError: not boolean (with `remedy`), or too few axes.
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

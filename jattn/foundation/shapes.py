"""Shapes as they are written in a docstring, checked against the arrays that came."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .arrays import describe, dtype_of, known_values


def check_shapes(
    known: Mapping[str, int] | None = None, /, *, kind: Any = jnp.floating, **arrays: tuple[Any, str]
) -> dict[str, int]:
    """The sizes of named axes, which all arrays must agree on.

    Args:
        known: sizes that are settled before any array comes, such as a layer's features.
        kind: the NumPy kind of dtype that all of the arrays must have.
        **arrays: each with its layout, axes separated by spaces. A number is that size; `...` at the front is any
            number of batch axes, the same for all arrays that have it.

    Returns:
        The size of each named axis.

    Raises:
        ValueError: naming the array, its shape, the layout, and the array that settled the size first.

    >>> import jax.numpy as jnp
    >>> check_shapes(query=(jnp.ones((2, 5, 16)), "... q_len dim"), key=(jnp.ones((2, 9, 16)), "... kv_len dim"))
    {'q_len': 5, 'dim': 16, 'kv_len': 9}
    >>> check_shapes({"dim": 8}, query=(jnp.ones((2, 5, 16)), "... q_len dim"))
    Traceback (most recent call last):
    ...
    ValueError: `query` must have shape [..., q_len, dim] with dim = 8; got (2, 5, 16).
    """
    sizes = dict(known or {})
    settled_by: dict[str, str] = {}
    for name, (array, layout) in arrays.items():
        axes = layout.split()
        written = f"[{', '.join(axes)}]"
        if dtype_of(array) is None:
            raise ValueError(f"`{name}` must be an array {written}, of JAX or NumPy; got {describe(array)}.")
        if not jnp.issubdtype(array.dtype, kind):
            wanted = {jnp.floating: "floating-point", jnp.integer: "integers", jnp.bool_: "booleans"}.get(kind, kind)
            raise ValueError(f"`{name}` must be {wanted}; got {array.dtype}.")
        shape = tuple(array.shape)
        named = axes[1:] if axes[0] == "..." else axes
        if len(shape) < len(named) or (axes[0] != "..." and len(shape) != len(named)):
            raise ValueError(f"`{name}` must have shape {written}; got {shape}.")
        found: list[tuple[str, Any]] = list(zip(named, shape[len(shape) - len(named) :], strict=True))
        if axes[0] == "...":
            found = [("...", shape[: len(shape) - len(named)]), *found]
        for axis, size in found:
            wanted = int(axis) if axis.isdecimal() else sizes.setdefault(axis, size)
            if axis not in settled_by and axis not in (known or {}):
                settled_by[axis] = name
            if size != wanted:
                raise ValueError(f"`{name}` must have shape {written}{_why(axis, wanted, settled_by)}; got {shape}.")
    sizes.pop("...", None)
    return sizes


def _why(axis: str, wanted: Any, settled_by: dict[str, str]) -> str:
    if axis.isdecimal():
        return ""
    said = "batch axes" if axis == "..." else axis
    return f" with {said} = {wanted}" + (f", as in `{settled_by[axis]}`" if axis in settled_by else "")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """`value` is one of a few names.

    Raises:
        ValueError: listing them.
    """
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}; got {value!r}.")


def check_multiple(of: str, /, *, unless: str | None = None, **sizes: int) -> None:
    """One size is a multiple of another.

    Args:
        of: the name of the one that divides.
        unless: the name of an argument that would set_field the matter, if it was given.
        **sizes: both, with the names of their arguments.

    Raises:
        ValueError: naming both.

    >>> check_multiple("heads", features=7, heads=2, unless="head_dim")
    Traceback (most recent call last):
    ...
    ValueError: `features` must be a multiple of `heads`, unless `head_dim` is given; got features 7 and heads 2.
    """
    divisor = sizes.pop(of)
    for name, size in sizes.items():
        if size % divisor:
            remedy = "" if unless is None else f", unless `{unless}` is given"
            raise ValueError(f"`{name}` must be a multiple of `{of}`{remedy}; got {name} {size} and {of} {divisor}.")


def check_positive(**sizes: Any) -> None:
    """Sizes are integers of at least 1.

    Raises:
        ValueError: naming the size.
    """
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"`{name}` must be a positive int; got {size!r}.")


def check_counts(**counts: Any) -> None:
    """Counts are integers of at least 0.

    Raises:
        ValueError: naming the count.
    """
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise ValueError(f"`{name}` must be an int of at least 0; got {count!r}.")


def check_flags(**flags: Any) -> None:
    """Flags are True or False, known while tracing.

    Raises:
        ValueError: naming the flag.
    """
    for name, value in flags.items():
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError(f"`{name}` must be True or False; got {value!r}.")


def check_rate(name: str, value: Any) -> None:
    """A probability in [0, 1]: a number, or a floating-point scalar array, whose value is checked where it is known.

    Raises:
        ValueError: something else.

    >>> check_rate("dropout_rate", 2.0)
    Traceback (most recent call last):
    ...
    ValueError: `dropout_rate` must be a probability in [0, 1]; got 2.0.
    """
    dtype = dtype_of(value)
    number = type(value) in (int, float)
    array = dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.ndim(value) == 0
    known = value if number else known_values(value) if array else None
    if not (number or array) or (known is not None and not 0 <= known <= 1):
        raise ValueError(
            f"`{name}` must be a probability in [0, 1]; got {describe(value) if known is None else known}."
        )


def check_key(name: str, key: Any) -> None:
    """A random key of JAX, typed or as its words.

    Raises:
        ValueError: something else, or several keys.

    >>> check_key("sample", 3)
    Traceback (most recent call last):
    ...
    ValueError: `sample` must be one random key, such as `jax.random.key(0)`; got 3.
    """
    dtype, rank = getattr(key, "dtype", None), len(getattr(key, "shape", ()))
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    words = dtype == np.uint32 and tuple(key.shape) in ((2,), (4,))
    if not (typed and rank == 0) and not words:
        got = repr(key) if dtype is None else f"an array of dtype {dtype} and shape {key.shape}"
        raise ValueError(f"`{name}` must be one random key, such as `jax.random.key(0)`; got {got}.")


def check_batch(batch: Any) -> None:
    """Batch axes are a tuple of sizes.

    Raises:
        ValueError: something else, such as one size.
    """
    if not isinstance(batch, tuple) or not all(isinstance(size, int | np.integer) and size >= 0 for size in batch):
        raise ValueError(f"`batch` must be a tuple of sizes, such as (2,), or () for none; got {batch!r}.")

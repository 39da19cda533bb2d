"""Check arrays against shapes written as in a docstring."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .arrays import describe, dtype_of, known_range, of_rank
from .fields import integers


def check_shapes(
    known: Mapping[str, int] | None = None, /, *, kind: Any = jnp.floating, **arrays: tuple[Any, str]
) -> dict[str, int]:
    """The sizes of named axes, which all arrays must agree on.

    Args:
        known: sizes known beforehand, such as a layer's features.
        kind: the kind of dtype that all the arrays must have, such as `jnp.floating`.
        **arrays: pairs of an array and its layout, axes separated by spaces. A number is that size; a leading `...` is
            any number of batch axes, equal for all arrays that have it.

    Returns:
        The size of each named axis.

    Raises:
        ValueError: names the array, its shape, the layout, and the array that determined the size.

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
        if kind is jnp.floating and jnp.finfo(array.dtype).bits < 16:
            raise ValueError(
                f"`{name}` must have at least 16 bits, as its numbers are added up; got {array.dtype}. Convert it "
                f"(with its scale): `{name}.astype('bfloat16')`."
            )
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


def check_lengths(lengths: Any, batch: tuple[int, ...], longest: int) -> jax.Array:
    """The length of each example, `[batch...]`. None means `longest` for all; a single number applies to all.

    Raises:
        ValueError: they are not integers; the shape is not that of the batch axes; a known length exceeds `longest`.

    >>> print(check_lengths([3, 5], (2,), 5), check_lengths(None, (2,), 5))
    [3 5] [5 5]
    """
    lengths = longest if lengths is None else integers("lengths", lengths, 0)
    shape = np.shape(lengths)
    if shape not in ((), batch):
        raise ValueError(
            f"`lengths` must be one integer, or one for each example, of shape {batch} like the batch axes; got shape "
            f"{shape}."
        )
    most = (known_range(lengths) or (0, 0))[1]
    if most > longest:
        raise ValueError(f"`lengths` must be at most {longest}, the length of the arrays; got {most}.")
    return jnp.broadcast_to(jnp.asarray(lengths, jnp.int32), batch)


def token_mask(lengths: Any, batch: tuple[int, ...], longest: int) -> jax.Array:
    """Which positions are tokens rather than padding: booleans `[batch..., longest]`; `lengths` as in `check_lengths`.

    >>> print(token_mask([1, 3], (2,), 3).astype(int))
    [[1 0 0]
     [1 1 1]]
    """
    lengths = check_lengths(lengths, batch, longest)[..., None]
    return of_rank(jnp.arange(longest), lengths.ndim) < lengths

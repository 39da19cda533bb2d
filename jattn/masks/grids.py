"""Masks on grids of 1 to 3 axes, flattened in row-major order.

Position `p` of a grid `(rows, columns)` is row `p // columns` and column `p % columns`. A call with known positions
past the grid is refused, since tokens in front of the grid (a class token, say) would otherwise be taken for its first
cells. Wrap the mask in `masks.Shifted` to say where the grid begins; positions outside of the grid then neither attend
nor are attended to.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from ..foundation.fields import LARGEST, set_field, sizes
from ..foundation.pieces import piece
from .base import Mask


@piece
class Neighborhood(Mask):
    """A window of fixed size around the query on a grid (NATTEN; Hassani et al. 2023, arXiv:2204.07143).

    On each axis of length L, with window w and query coordinate i, the keys are

        k = start, ..., start + w - 1,    start = clip(i - (w - 1) / 2, 0, L - w).

    Near a border the window shifts inward, so every query attends to exactly w keys. For a window that is cut off at
    the border instead, use `SlidingWindow` (one axis) or `masks.of` (several axes). With dilation d (arXiv:2209.15001)
    each axis splits into d interleaved grids, of the coordinates that are equal modulo d, and the formula holds in each
    of them.

    Args:
        shape: the side lengths of the grid, 1 to 3 Python ints.
        window: odd; one Python int for all axes, or one per axis.
        dilation: at least 1; one Python int for all axes, or one per axis.

    Raises:
        ValueError: an argument is not an integer; there are more than 3 axes; a window is even; `window * dilation`
            exceeds a side; or, at the call, a position is past the grid.

    >>> import jax.numpy as jnp
    >>> from jattn import masks
    >>> mask = masks.Neighborhood((5,), window=3)
    >>> print(mask.allows(jnp.arange(5)[:, None], jnp.arange(5)).astype(int))
    [[1 1 1 0 0]
     [1 1 1 0 0]
     [0 1 1 1 0]
     [0 0 1 1 1]
     [0 0 1 1 1]]
    """

    shape: tuple[int, ...]
    window: int | tuple[int, ...]
    dilation: int | tuple[int, ...] = 1

    def __post_init__(self):
        shape = grid_shape(self.shape)
        window, dilation = sizes("window", self.window, len(shape)), sizes("dilation", self.dilation, len(shape))
        for side, width, step in zip(shape, window, dilation, strict=True):
            if width % 2 == 0:
                raise ValueError(f"`window` must be odd, so that it has a center; got {window}.")
            if width * step > side:
                raise ValueError(
                    f"`window * dilation` must fit in the grid on every axis; got window {window}, dilation "
                    f"{dilation} and shape {shape}. A window as large as its axis is the whole axis."
                )
        for name, value in (("shape", shape), ("window", window), ("dilation", dilation)):
            set_field(self, name, value)

    def extent(self):
        return (math.prod(self.shape),) * 2

    def allows(self, query, key):
        allowed = inside(query, self.shape) & inside(key, self.shape)
        axes = zip(
            self.shape,
            sizes("window", self.window, len(self.shape)),
            sizes("dilation", self.dilation, len(self.shape)),
            coordinates_of(query, self.shape),
            coordinates_of(key, self.shape),
            strict=True,
        )
        for side, width, step, at, other in axes:
            count = side
            if step > 1:
                remainder = at % step
                allowed = allowed & (remainder == other % step)
                at, other, count = at // step, other // step, (side - remainder + step - 1) // step
            start = jnp.clip(at - width // 2, 0, count - width)
            allowed = allowed & (start <= other) & (other < start + width)
        return allowed


@piece
class Axial(Mask):
    """Attention along one axis of a grid: all other coordinates are equal (Ho et al. 2019, arXiv:1912.12180).

    Args:
        shape: the side lengths of the grid, 1 to 3 Python ints.
        axis: the axis to attend along; negative values count from the last.

    Raises:
        ValueError: an argument is not an integer; there are more than 3 axes; `axis` is out of range; or, at the call,
            a position is past the grid.

    >>> import jax.numpy as jnp
    >>> from jattn import masks
    >>> columns = masks.Axial((2, 3), axis=0)
    >>> print(columns.allows(jnp.arange(6)[:, None], jnp.arange(6)).astype(int))
    [[1 0 0 1 0 0]
     [0 1 0 0 1 0]
     [0 0 1 0 0 1]
     [1 0 0 1 0 0]
     [0 1 0 0 1 0]
     [0 0 1 0 0 1]]
    """

    shape: tuple[int, ...]
    axis: int

    def __post_init__(self):
        shape = grid_shape(self.shape)
        if not isinstance(self.axis, int) or isinstance(self.axis, bool) or not -len(shape) <= self.axis < len(shape):
            raise ValueError(f"`axis` must be an axis of the grid {shape}, an integer; got {self.axis!r}.")
        set_field(self, "shape", shape)
        set_field(self, "axis", self.axis % len(shape))

    def extent(self):
        return (math.prod(self.shape),) * 2

    def allows(self, query, key):
        allowed = inside(query, self.shape) & inside(key, self.shape)
        coordinates = zip(coordinates_of(query, self.shape), coordinates_of(key, self.shape), strict=True)
        for axis, (at, other) in enumerate(coordinates):
            if axis != self.axis:
                allowed = allowed & (at == other)
        return allowed


def grid_shape(shape: Any) -> tuple[int, ...]:
    """Check the side lengths of a grid.

    Raises:
        ValueError: `shape` is not 1 to 3 positive integers.
    """
    shape = sizes("shape", shape)
    if not 1 <= len(shape) <= 3 or math.prod(shape) > LARGEST:
        raise ValueError(f"`shape` must have 1 to 3 axes and at most {LARGEST} positions; got {shape}.")
    return shape


def inside(position: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Whether a position is on the grid."""
    return (position >= 0) & (position < math.prod(shape))


def coordinates_of(position: jax.Array, shape: tuple[int, ...]) -> Iterator[jax.Array]:
    """The coordinates of a position on the grid, one axis at a time."""
    for axis, side in enumerate(shape):
        below = math.prod(shape[axis + 1 :])
        coordinate = position // below if below > 1 else position
        yield coordinate % side if axis else coordinate

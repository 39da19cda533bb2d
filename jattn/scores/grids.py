"""A learned bias for each offset between two cells of a grid, as in Swin's windows."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.fields import floats, set_field
from ..foundation.pieces import array, piece
from ..masks.grids import coordinates_of, grid_shape, inside
from .base import Score
from .look_up import look_up


@piece
class RelativeGrid(Score):
    """score + table[offset, head], by the offset between two cells of a grid (Swin; Liu et al. 2021, arXiv:2103.14030).

    Position p is the cell (p // columns, p % columns) of a grid of `shape` (rows, columns); grids of one or three axes
    work likewise. For a query at (y, x) and a key at (y', x') the offset is (y - y' + rows - 1) * (2 columns - 1) + (x
    - x' + columns - 1), which is Swin's layout, so its tables fit unchanged. Pairs with a token outside of the grid,
    such as a class token, are left as they are.

    Args:
        table: floating-point `[batch..., offsets, heads]`, with (2 rows - 1)(2 columns - 1) offsets.
        shape: the side lengths of the grid, 1 to 3 Python ints.
        start: the position of the grid's first cell, if other tokens precede the grid.

    Raises:
        ValueError: `table` is not floating-point or has another number of offsets; `shape` or `start` is invalid.

    >>> import jax, jattn
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (5, 12, 2, 4)) for i in range(3))  # five windows of 3 x 4
    >>> bias = jattn.scores.RelativeGrid(jax.random.normal(jax.random.key(3), (35, 2)), shape=(3, 4))
    >>> jattn.attention(q, k, v, scores=bias).shape
    (5, 12, 2, 4)
    """

    table: jax.Array | np.ndarray = array("offset", "head")
    shape: tuple[int, ...]
    start: int = 0
    finite_at_zero = True

    def __post_init__(self):
        set_field(self, "table", floats("table", self.table, ("offset", "head")))
        set_field(self, "shape", grid_shape(self.shape))
        offsets = math.prod(2 * side - 1 for side in self.shape)
        if self.table.shape[-2] != offsets:
            raise ValueError(
                f"`table` must have {offsets} rows, the offsets in a grid of shape {self.shape}; got shape "
                f"{tuple(self.table.shape)} [batch..., offset, head]."
            )
        if not isinstance(self.start, int) or isinstance(self.start, bool) or self.start < 0:
            raise ValueError(f"`start` must be an integer of at least 0; got {self.start!r}.")

    def modify(self, scores, query, key):
        query, key = query - self.start, key - self.start
        offset = 0
        places = (coordinates_of(query, self.shape), coordinates_of(key, self.shape))
        for side, at, other in zip(self.shape, *places, strict=True):
            offset = offset * (2 * side - 1) + (at - other + side - 1)
        added = look_up(self.table.astype(scores.dtype), jnp.asarray(offset))
        return scores + jnp.where(inside(query, self.shape) & inside(key, self.shape), added, 0)

"""Keys chosen one by one, or block by block, for each query or block of queries."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arrays import describe
from ..foundation.pieces import array, number, piece
from .arguments import LARGEST, Integers, block_sizes, integers, set_field
from .base import Mask


@piece
class Selected(Mask):
    """Chosen keys: `k // key_size` is one of `indices[..., (q - first_query) // query_size, :]`.

    With `size=1` a query has a list of keys (DeepSeek's sparse attention, arXiv:2512.02556); with `size=(1, 64)` a list
    of blocks of keys (the selected branch of native sparse attention, arXiv:2502.11089; MoBA, arXiv:2502.13189); with
    `size=(64, 64)` a block of queries has one. Lists come from a router, `jax.lax.top_k` of what it scores, and are
    traced like any array: new ones do not retrace. Tiles in which no pair is chosen are skipped. Queries beyond the
    lists are refused where their positions are known, and else attend to nothing. What is chosen has no gradient: a
    router learns by weights that it puts elsewhere.

    The list of every query takes a row of its own, so memory and the time to plan grow with q_len x (choices + key
    tiles), and a pair takes log2(choices) look-ups. Choices that are alike for neighbors are better made in blocks.

    Args:
        indices: integers `[batch..., heads or 1, query blocks, choices]`, in any order; repeated ones count once,
            negative ones choose nothing.
        size: of a block, one Python integer or (of query blocks, of key blocks).
        first_query: the position of the first query of the first list; an integer, or an array `[batch...]`. For
            decoding with a cache, the position of the token.

    Raises:
        ValueError: no integer array of three axes; a size below 1; at the call, queries beyond the lists.

    >>> import numpy as np
    >>> from jattn import masks
    >>> indices = np.array([[0, -1], [1, 0], [1, 1], [-1, -1]])[None]
    >>> print(masks.create(masks.Selected(indices, size=(1, 2)), 4, 4).astype(int))
    [[[1 1 0 0]
      [1 1 1 1]
      [0 0 1 1]
      [0 0 0 0]]]
    """

    indices: np.ndarray | jax.Array = array("head", "query_block", "choice")
    size: int | tuple[int, int] = 1
    first_query: Integers = number(default=0)

    def __post_init__(self):
        indices: Any = integers("indices", self.indices, least=-LARGEST - 1)
        if isinstance(indices, int) or len(indices.shape) < 3:
            raise ValueError(
                "`indices` must be an integer array [batch..., heads or 1, query blocks, choices]; got "
                f"{describe(self.indices)}. Give every axis, with size 1 where it is shared, as in `indices[None]`."
            )
        if not isinstance(indices, jax.ShapeDtypeStruct):
            xp: Any = np if isinstance(indices, np.ndarray) else jnp
            indices = xp.sort(indices.astype(np.int32), axis=-1)
        set_field(self, "indices", indices)
        set_field(self, "size", block_sizes(self.size))
        set_field(self, "first_query", integers("first_query", self.first_query, least=0))

    def extent(self):
        if not isinstance(self.first_query, int):
            return None, None
        return self.first_query + jnp.shape(self.indices)[-2] * block_sizes(self.size, both=True)[0], None

    def allows(self, query, key):
        rows, choices = jnp.shape(self.indices)[-2:]
        if rows == 0 or choices == 0:
            return jnp.full_like(query, False, dtype=bool)
        query_size, key_size = block_sizes(self.size, both=True)
        row = (query - self.first_query) // query_size
        inside = (row >= 0) & (row < rows)
        holds = jnp.vectorize(row_holds, signature="(r,c),(),()->()")
        return holds(self.indices, jnp.clip(row, 0, rows - 1), key // key_size) & inside


@jax.jit  # a nested call, whose whole the plan of tiles has a rule for
def row_holds(table: jax.Array, row: jax.Array, number: jax.Array) -> jax.Array:
    """Whether `number`, which is not negative, is in `table[row]`, whose entries ascend.

    Args:
        table: int32 `[rows, choices]`, not empty.
        row: of the table, inside it.
        number: to look for.
    """
    entries = jax.lax.dynamic_slice(table, (row, 0), (1, table.shape[1]))[0]
    place = entries_below(jnp, entries, number[None])
    found = entries.at[jnp.minimum(place, table.shape[1] - 1)].get(mode="promise_in_bounds") == number
    return ((number >= 0) & (place < table.shape[1]) & found)[0]


def entries_below(xp: Any, entries: Any, numbers: Any) -> Any:
    """How many of `entries [..., n]`, which ascend, are less than each of `numbers [..., m]`: int32 `[..., m]`.

    Args:
        xp: NumPy or jax.numpy.
        entries: at least one.
        numbers: their axes before the last broadcast with those of `entries`.
    """
    count = entries.shape[-1]
    lead = np.broadcast_shapes(entries.shape[:-1], numbers.shape[:-1])
    entries = xp.broadcast_to(entries, (*lead, count))
    numbers = xp.broadcast_to(numbers, (*lead, numbers.shape[-1]))
    place = xp.zeros(numbers.shape, np.int32)
    step = 1 << (count.bit_length() - 1)
    while step:
        further = place + np.int32(step)
        last = xp.take_along_axis(entries, xp.minimum(further, count) - 1, axis=-1)
        place = xp.where((further <= count) & (last < numbers), further, place)
        step //= 2
    return place

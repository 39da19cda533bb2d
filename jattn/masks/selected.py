"""Keys, or blocks of keys, selected by index for each query or block of queries."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arrays import describe
from ..foundation.fields import LARGEST, Integers, block_sizes, integers, set_field
from ..foundation.pieces import array, number, piece
from .base import Mask


@piece
class Selected(Mask):
    """Selected keys: `k // key_size` is in `indices[..., (q - first_query) // query_size, :]`.

    With `size=1` each query has its own list of keys (DeepSeek's sparse attention, arXiv:2512.02556). With
    `size=(1, 64)` each query has a list of key blocks (the selected branch of native sparse attention,
    arXiv:2502.11089; MoBA, arXiv:2502.13189), and with `size=(64, 64)` each block of queries has one. The lists usually
    come from a router, as `jax.lax.top_k` of its scores. They are traced like any array, so new lists do not retrace,
    and tiles without a selected pair are skipped. Queries that the lists do not cover are refused if their positions
    are known, and attend to nothing otherwise. The selection has no gradient; a router must learn through weights that
    it applies elsewhere.

    Memory and planning time grow with (number of lists) x (choices + key tiles), and testing one pair takes
    log2(choices) lookups. If neighboring queries choose alike, let them share a list by a larger query block.

    Args:
        indices: integers `[batch..., heads or 1, query_blocks, choices]`, in any order. Repeats count once, and
            negative entries select nothing.
        size: the block size, a Python int, or a pair `(query_size, key_size)`.
        first_query: the position of the first query that the lists cover: an int, or an int array `[batch...]`. When
            decoding with a cache, the position of the new token.

    Raises:
        ValueError: `indices` is not an integer array of at least three axes; a size is below 1; or, at the call, a
            query is not covered by the lists.

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

    beyond = (
        "`indices` of `Selected` needs a list for each block of queries. An empty one, of negative entries, selects "
        "nothing; lists for later queries alone say where they begin, by `first_query`."
    )

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


@jax.jit  # keeps this one call in the jaxpr; the tile plan has an interval rule for the whole call
def row_holds(table: jax.Array, row: jax.Array, number: jax.Array) -> jax.Array:
    """Whether the nonnegative `number` is in `table[row]`, whose entries are sorted in ascending order.

    Args:
        table: int32 `[rows, choices]`, not empty.
        row: an index of a row of the table, in range.
        number: the number to look for.
    """
    start = row, row.dtype.type(0)  # of one dtype, also where JAX has 64-bit integers enabled
    entries = jax.lax.dynamic_slice(table, start, (1, table.shape[1]))[0]
    place = entries_below(jnp, entries, number[None])
    found = entries.at[jnp.minimum(place, table.shape[1] - 1)].get(mode="promise_in_bounds") == number
    return ((number >= 0) & (place < table.shape[1]) & found)[0]


def entries_below(xp: Any, entries: Any, numbers: Any) -> Any:
    """How many of the sorted `entries [..., n]` are less than each of `numbers [..., m]`: int32 `[..., m]`.

    A binary search (`searchsorted` from the left) that broadcasts over leading axes.

    Args:
        xp: `numpy` or `jax.numpy`.
        entries: sorted in ascending order, n at least 1.
        numbers: leading axes broadcast with those of `entries`.
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

"""Masks defined on blocks of positions: position `p` is in block `p // size`."""

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.fields import Integers, block_sizes, booleans, integers, set_field, size
from ..foundation.pieces import array, number, piece
from .base import Mask


@piece
class Chunked(Mask):
    """Attention within fixed-size chunks, in both directions: `q // size == k // size`. Causal with `& Causal()`.

    Args:
        size: the chunk size, at least 1: an int, or an int array `[batch..., heads]`.

    Raises:
        ValueError: `size` is not an integer of at least 1.

    >>> import jax.numpy as jnp
    >>> from jattn import masks
    >>> print(masks.Chunked(2).allows(jnp.arange(4)[:, None], jnp.arange(4)).astype(int))
    [[1 1 0 0]
     [1 1 0 0]
     [0 0 1 1]
     [0 0 1 1]]
    """

    size: Integers = number("head")

    def __post_init__(self):
        set_field(self, "size", integers("size", self.size, least=1, axes="head"))

    def allows(self, query, key):
        return query // self.size == key // self.size


@piece
class BlockCausal(Mask):
    """Causal between blocks, bidirectional within one: `k // size <= q // size` (video frames, block diffusion).

    Args:
        size: the block size, at least 1: an int, or an int array `[batch..., heads]`.

    Raises:
        ValueError: `size` is not an integer of at least 1.

    >>> import jax.numpy as jnp
    >>> from jattn import masks
    >>> print(masks.BlockCausal(2).allows(jnp.arange(4)[:, None], jnp.arange(4)).astype(int))
    [[1 1 0 0]
     [1 1 0 0]
     [1 1 1 1]
     [1 1 1 1]]
    """

    size: Integers = number("head")

    def __post_init__(self):
        set_field(self, "size", integers("size", self.size, least=1, axes="head"))

    def allows(self, query, key):
        return key // self.size <= query // self.size


@piece
class BlockedLocal(Mask):
    """Local attention by blocks: the query's own block and its neighbors, `-before <= k // size - q // size <= after`.

    Parmar et al. 2018 (arXiv:1802.05751); the baseline in Roy et al. 2021 (arXiv:2003.05997).
    `BlockedLocal(size, 1, 0) & Causal()` is the causal form. The length is arbitrary; the last block may be shorter.
    Tiles that consist of whole blocks need no masking.

    Args:
        size: the block size, a Python int of at least 1.
        before: the number of blocks before the query's own: an int, or an int array `[batch..., heads]`.
        after: the number of blocks after it, likewise.

    Raises:
        ValueError: `size` is below 1, or `before` or `after` is negative.

    >>> print(BlockedLocal(2, 1, 0).picture(6, 6).rsplit(chr(10), 2)[0])
    ██····
    ██····
    ████··
    ████··
    ··████
    ··████
    """

    size: int
    before: Integers = number("head", default=1)
    after: Integers = number("head", default=1)

    def __post_init__(self):
        set_field(self, "size", size("size", self.size))
        for name in ("before", "after"):
            set_field(self, name, integers(name, getattr(self, name), least=0, axes="head"))

    def allows(self, query, key):
        ahead = key // self.size - query // self.size
        return (-self.before <= ahead) & (ahead <= self.after)


@piece
class Summaries(Mask):
    """The last `count` keys of every block: `k % size >= size - count`. Part of the Sparse Transformer's fixed pattern.

    Args:
        size: the block size, at least 1: an int, or an int array `[batch..., heads]`.
        count: the number of keys per block: an int, or an int array `[batch..., heads]`.

    Raises:
        ValueError: an argument is not such an integer.

    >>> print(Summaries(3, 1).picture(1, 6).splitlines()[0])
    ··█··█
    """

    size: Integers = number("head")
    count: Integers = number("head")

    def __post_init__(self):
        set_field(self, "size", integers("size", self.size, least=1, axes="head"))
        set_field(self, "count", integers("count", self.count, least=0, axes="head"))

    def allows(self, query, key):
        del query
        return key % self.size >= self.size - self.count


@piece
class Blocks(Mask):
    """Block-sparse attention from a boolean table: `table[..., q // query_size, k // key_size]`.

    The table has one entry per pair of blocks, so an irregular layout stays cheap: the random blocks of BigBird
    (arXiv:2007.14062), or blocks chosen by a router. If each query block attends to only a few of many key blocks, use
    `Selected`, which takes lists of block indices. A call with positions past the table is refused, unless the mask is
    wrapped in `Shifted`.

    Args:
        table: booleans `[batch..., heads or 1, query_blocks, key_blocks]`.
        size: the block size, a Python int of at least 1, or a pair `(query_size, key_size)`.

    Raises:
        ValueError: `table` is not boolean or has fewer than 3 axes; `size` is not an integer of at least 1; or, at the
            call, a position is past the table.

    >>> import jax.numpy as jnp
    >>> from jattn import masks
    >>> mask = masks.Blocks(jnp.eye(3, dtype=bool)[None], size=128)
    >>> mask.size, mask.table.shape
    (128, (1, 3, 3))
    """

    table: np.ndarray | jax.Array = array("head", "query_block", "key_block")
    size: int | tuple[int, int]

    def __post_init__(self):
        remedy = "True allows a pair of blocks: compare numbers first, as in `table != 0`."
        set_field(self, "table", booleans("table", self.table, ("head", "query_block", "key_block"), remedy))
        set_field(self, "size", block_sizes(self.size))

    def extent(self):
        rows, columns = jnp.shape(self.table)[-2:]
        query_size, key_size = block_sizes(self.size, both=True)
        return rows * query_size, columns * key_size

    def allows(self, query, key):
        rows, columns = jnp.shape(self.table)[-2:]
        if rows == 0 or columns == 0:
            return jnp.full_like(query, False, dtype=bool)
        query_size, key_size = block_sizes(self.size, both=True)
        row, column = query // query_size, key // key_size
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        row, column = jnp.clip(row, 0, rows - 1), jnp.clip(column, 0, columns - 1)
        return _look_up(self.table, row, column) & inside


def _look_up(table: np.ndarray | jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    """`table[..., row, column]`, elementwise. The leading axes of `table` broadcast with the indices."""

    def one(table, row, column):
        # With scalar indices this is one dynamic slice. Its interval rule reduces a rectangle of the table.
        return jax.lax.dynamic_slice(table, (row, column), (1, 1), allow_negative_indices=False)[0, 0]

    return jnp.vectorize(one, signature="(r,c),(),()->()")(table, row, column)

"""A mask given as a boolean array, and any mask converted to one."""

from typing import Any

import jax
import numpy as np

from ..foundation.arrays import as_array
from ..foundation.fields import booleans, set_field
from ..foundation.pieces import array, indexed, piece
from .base import FEW_AXES, Mask, as_mask
from .placement import dense

_AXES = ("head", "query", "key")


@piece
class Dense(Mask):
    """A mask given as a boolean array, True where a query may attend to a key: `array[..., h, i, j]`.

    `i` and `j` index the queries and keys of the call, not their positions. All four axes are written out, with size 1
    where the mask is shared: `[batch, heads or 1, q_len or 1, kv_len or 1]`. An array of three axes is read as
    `[head, query, key]`; if the batch size equals the number of heads, that is ambiguous and the call refuses it.

    The array takes O(q_len x kv_len) memory. Every other mask is a formula, and takes next to none.

    Args:
        array: booleans `[batch..., heads or 1, q_len or 1, kv_len or 1]`.

    Raises:
        ValueError: `array` is not boolean (numbers that are added to the scores are `jattn.scores.Bias`), or has fewer
            than 3 axes.

    >>> import numpy as np
    >>> from jattn import masks
    >>> mask = masks.Dense(np.tril(np.ones((4, 4), bool))[None])  # shared by all heads and sequences
    >>> mask.array.shape
    (1, 4, 4)
    """

    array: np.ndarray | jax.Array = array(*_AXES)

    def __post_init__(self):
        remedy = (
            "An additive mask, such as of 0 and -1e9, is not a boolean mask: as booleans it would allow the pairs that "
            "it forbids, and added to the scores it makes rows without allowed keys uniform. Give the comparison, as "
            "in `array > -1`. To add numbers to the scores, use `jattn.scores.Bias(array)`."
        )
        shape = getattr(as_array(self.array), "shape", ())
        if len(shape) in (1, 2):
            raise ValueError(
                f"`array` must have the axes [batch..., head, query, key]; got shape {shape}. "
                f"Which axes are missing is not guessed. {FEW_AXES}"
            )
        set_field(self, "array", booleans("array", self.array, _AXES, remedy))

    def allows(self, query, key):
        del query, key
        return self.array


def create(
    mask: Any,
    q_len: int,
    kv_len: int,
    *,
    query_positions: Any = None,
    key_positions: Any = None,
    batch: int | None = None,
    heads: int | None = None,
) -> jax.Array:
    """Convert any mask to a boolean array `[batch..., heads, q_len, kv_len]`, True where a query may attend to a key.

    For inspecting a mask, or for other code that takes an array; `attention` itself does not need it. The batch and
    head axes are those of the mask's arrays and of the positions, with size 1 where all entries are the same.

    Args:
        mask: a mask, or a function of two positions.
        q_len: the number of queries.
        kv_len: the number of keys.
        query_positions: integers `[q_len]`, as in `jattn.attention`.
        key_positions: integers `[kv_len]`, as in `jattn.attention`.
        batch: the number of examples, for a function that uses the batch index (see `masks.of`).
        heads: the number of heads, for a function that uses the head index.

    Raises:
        ValueError: positions are needed but missing, as in `jattn.attention`; an array of the mask does not fit the
            lengths; a position is past the mask's grid; or a function uses the batch or head index, and neither `batch`
            nor `heads` is given.

    >>> from jattn import masks
    >>> print(masks.create(masks.Causal() & masks.SlidingWindow(1), 3, 3).astype(int))
    [[[1 0 0]
      [1 1 0]
      [0 1 1]]]
    """
    piece = as_mask(mask)
    if batch is None and heads is None and indexed(piece, (1,), 1) is not piece:
        raise ValueError(
            f"`batch` or `heads` must say how many examples and heads to ask about, as {piece!r} reads their indices; "
            "got neither. For one of each: `batch=1, heads=1`."
        )
    counts = {"batch": 1 if batch is None else batch, "heads": 1 if heads is None else heads}
    return dense(piece, q_len, kv_len, query_positions, key_positions, **counts)

"""A mask given pair by pair."""

from typing import Any

import jax
import numpy as np

from ..foundation.arrays import as_array
from ..foundation.pieces import array, indexed, piece
from .arguments import booleans, set_field
from .base import FEW_AXES, Mask, as_mask

_AXES = ("head", "query", "key")


@piece
class Dense(Mask):
    """A boolean array, True where a query may attend a key: `array[..., h, i, j]`.

    For the i-th query and the j-th key of the call, whatever their positions. Every axis is given, size 1 where it is
    shared: `[batch, heads or 1, q_len or 1, kv_len or 1]`. Three axes are `[head, query, key]`; where the batch has
    as many sequences as there are heads, the call refuses them rather than guess. It costs what it holds,
    q_len x kv_len; every other mask is a formula that costs nothing.

    Args:
        array: boolean, `array("head", "query", "key")`.

    Raises:
        ValueError: `array` is not boolean (numbers that are added to scores are `jattn.scores.Bias`) or has fewer
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
            "An additive mask (0 and -1e9, say) is no mask: cast to booleans it would allow the very pairs that it "
            "forbids, and added it leaves a row with nothing to attend uniform. Give the comparison, as in "
            "`array > -1`; numbers meant to be added to the scores are `jattn.scores.Bias(array)`."
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
    """Any mask as a boolean array, True where a query may attend to a key: `[batch..., heads, q_len, kv_len]`.

    For looking at a mask, and for code that takes an array; `attention` needs none. Batch axes and heads are those of
    the mask's arrays and of the positions, with size 1 where they are alike.

    Args:
        mask: a mask, or a function of two positions.
        q_len: number of queries.
        kv_len: number of keys.
        query_positions, key_positions: as of `jattn.attention`.
        batch, heads: how many to ask about, where the mask is a function that reads their indices (`masks.of`).

    Raises:
        ValueError: positions that are not said, as `jattn.attention`; an array of the mask does not fit the lengths;
            positions beyond the mask's grid; a function that reads the index of the example or head, and neither
            `batch` nor `heads`.

    >>> from jattn import masks
    >>> print(masks.create(masks.Causal() & masks.SlidingWindow(1), 3, 3).astype(int))
    [[[1 0 0]
      [1 1 0]
      [0 1 1]]]
    """
    from ..ops.attention.plan.placed import dense  # here, not above: tiles are a later layer, which reads masks

    piece = as_mask(mask)
    if batch is None and heads is None and indexed(piece, (1,), 1) is not piece:
        raise ValueError(
            f"`batch` or `heads` must say how many examples and heads to ask about, as {piece!r} reads their indices; "
            "got neither. For one of each: `batch=1, heads=1`."
        )
    counts = {"batch": 1 if batch is None else batch, "heads": 1 if heads is None else heads}
    return dense(piece, q_len, kv_len, query_positions, key_positions, **counts)

"""A mask given pair by pair."""

import jax
import numpy as np

from ..pieces import array, piece
from .arguments import booleans, settle
from .base import Mask

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
        settle(self, "array", booleans("array", self.array, _AXES, remedy))

    def allows(self, query, key):
        del query, key
        return self.array

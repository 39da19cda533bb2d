"""Masks from flags of heads, queries or keys, independent of positions."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ..foundation.arguments import check_positive
from ..foundation.arrays import describe
from ..foundation.fields import booleans, set_field
from ..foundation.pieces import array, piece
from .base import Mask, as_mask


@piece
class OnHeads(Mask):
    """All pairs of the flagged heads: `flags[head]`. With `&` it applies a mask to some heads only.

    Args:
        flags: booleans `[batch..., heads]`.

    Raises:
        ValueError: `flags` is not a boolean array.

    >>> OnHeads([True, False]).flags
    array([ True, False])
    """

    flags: np.ndarray | jax.Array = array("head")

    def __post_init__(self):
        set_field(self, "flags", booleans("flags", self.flags, ("head",), "True allows the pairs of a head."))

    def allows(self, query, key):
        del query, key
        return self.flags


@piece
class Flagged(Mask):
    """Pairs whose query or key is flagged: `query_flags[i] | key_flags[j]`, such as global tokens.

    `i` and `j` index the queries and keys of the call, not their positions.

    Args:
        query_flags: booleans `[batch..., q_len]`, or None to flag no query.
        key_flags: booleans `[batch..., kv_len]`, or None to flag no key.

    Raises:
        ValueError: flags are not boolean arrays, or both are None.

    >>> print(Flagged(query_flags=[False, False, True]).picture(3, 3).rsplit(chr(10), 2)[0])
    ···
    ···
    ███
    """

    query_flags: np.ndarray | jax.Array | None = array("query", default=None)
    key_flags: np.ndarray | jax.Array | None = array("key", default=None)

    def __post_init__(self):
        if self.query_flags is None and self.key_flags is None:
            raise ValueError("`query_flags` or `key_flags` must be given; got neither.")
        for name, axis in (("query_flags", "query"), ("key_flags", "key")):
            if getattr(self, name) is not None:
                set_field(self, name, booleans(name, getattr(self, name), (axis,), "True flags a token."))

    def allows(self, query, key):
        del query, key
        if self.query_flags is None or self.key_flags is None:
            return self.key_flags if self.query_flags is None else self.query_flags
        return self.query_flags | self.key_flags


def split_between_heads(masks: Sequence[Mask], q_heads: int) -> Mask:
    """Give each of several masks an equal share of the heads: the first mask to the first heads, and so on.

    Tiles are skipped per head.

    Args:
        masks: at least one mask, or function of two positions.
        q_heads: the number of query heads, a multiple of the number of masks.

    Raises:
        ValueError: the number of heads is not a multiple of the number of masks, or `masks` is not a list of masks.

    >>> from jattn import masks
    >>> mask = split_between_heads([masks.SlidingWindow(1, 0), masks.Causal()], q_heads=2)
    >>> print(masks.create(mask, 3, 3).astype(int))
    [[[1 0 0]
      [1 1 0]
      [0 1 1]]
    <BLANKLINE>
     [[1 0 0]
      [1 1 0]
      [1 1 1]]]
    """
    check_positive(q_heads=q_heads)
    if not isinstance(masks, Sequence) or isinstance(masks, str) or not masks:
        raise ValueError(f"`masks` must be a list of at least one mask; got {describe(masks)}.")
    if q_heads % len(masks):
        raise ValueError(f"`q_heads` must be a multiple of the {len(masks)} patterns to split them; got {q_heads}.")
    which = np.arange(q_heads) * len(masks) // q_heads
    whole: Any = None
    for index, mask in enumerate(masks):
        one = OnHeads(which == index) & as_mask(mask)
        whole = one if whole is None else whole | one
    return whole

"""Blocked local attention: the query's own block and its neighbors."""

from ...foundation.fields import Integers, integers, set_field, size
from ...foundation.pieces import number, piece
from ...masks.base import Mask


@piece
class BlockedLocal(Mask):
    """Own block and its neighbors: `-before ≤ ⌊k / size⌋ - ⌊q / size⌋ ≤ after`.

    Local attention by blocks (Parmar et al. 2018, arXiv:1802.05751; Roy et al. 2021, arXiv:2003.05997, compare with
    it). `BlockedLocal(size, 1, 0) & Causal()` is the causal form. Any length: the last block may be shorter. Tiles
    that are whole blocks need no masking.

    Args:
        size: of a block, a Python integer of at least 1.
        before: how many blocks before the own, `number("head")`.
        after: how many behind it, `number("head")`.

    Raises:
        ValueError: `size` below 1; `before` or `after` negative.

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

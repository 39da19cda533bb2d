"""A mask whose positions are counted from another origin."""

from ..foundation.fields import Integers, integers, set_field
from ..foundation.pieces import number, part, piece
from .base import Mask, as_mask


@piece
class Shifted(Mask):
    """A mask of positions counted from `start`: `mask(query - start, key - start)`.

    Use it for a grid that follows other tokens. `Shifted(Neighborhood((8, 8), 3), 1)` leaves position 0 to a class
    token, which this mask keeps apart from all others; add `| masks.of(lambda q, k: (q == 0) | (k == 0))` to let it
    attend to everything and be attended to. A grid wrapped in `Shifted`, even with `start=0`, may be smaller than the
    sequence. An unwrapped one may not, because tokens in front of it would be taken for its first cells.

    Args:
        mask: the mask, or a function of two positions, which may be negative.
        start: at least 0: an int, or an int array `[batch...]`.

    Raises:
        ValueError: `mask` is neither a mask nor a function; `start` is negative or not an integer.

    >>> from jattn import masks
    >>> print(masks.Shifted(masks.Chunked(2), 1).picture(4, 4).rsplit(chr(10), 2)[0])
    █···
    ·██·
    ·██·
    ···█
    """

    mask: Mask = part()
    start: Integers = number(default=0)

    def __post_init__(self):
        set_field(self, "mask", as_mask(self.mask))
        set_field(self, "start", integers("start", self.start, least=0))

    def extent(self):
        return None, None

    def allows(self, query, key):
        return self.mask.allows(query - self.start, key - self.start)

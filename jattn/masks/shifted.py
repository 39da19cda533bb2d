"""A mask of positions that are counted from another one than 0."""

from ..foundation.pieces import number, part, piece
from .arguments import Integers, integers, set_field
from .base import Mask


@piece
class Shifted(Mask):
    """A mask of positions counted from `start`: `mask(query - start, key - start)`.

    For a grid with tokens in front of it. `Shifted(Neighborhood((8, 8), 3), 1)` leaves position 0 to a class token,
    which attends to nothing by it and is attended to by nothing; `| masks.of(lambda q, k: (q == 0) | (k == 0))` lets it
    see all and be seen by all. A grid that stands in `Shifted`, with `start` 0 too, may be smaller than the sequence:
    by itself it is refused there, since a token in front would be taken for its first cell.

    Args:
        mask: of the shifted positions, negative ones among them.
        start: at least 0; an integer, or an array `[batch...]`.

    Raises:
        ValueError: `start` is negative or not an integer.

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
        set_field(self, "start", integers("start", self.start, least=0))

    def extent(self):
        return None, None

    def allows(self, query, key):
        return self.mask.allows(query - self.start, key - self.start)

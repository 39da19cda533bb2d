"""Block diffusion: training on noisy blocks that see the clean blocks before them (Arriola et al. 2025)."""

from ..foundation.fields import set_field, size
from ..foundation.pieces import piece
from .base import Mask


@piece
class BlockDiffusion(Mask):
    """A row of 2 n tokens, the noisy copy first: `[x_t; x_0]`. With b the block of a token in its copy,

        noisy query, noisy key:  b_q = b_k        noisy query, clean key:  b_k < b_q
        clean query, clean key:  b_k ≤ b_q        clean query, noisy key:  never

    Arriola et al. 2025 (arXiv:2503.09573). Position p < n is the noisy copy of token p, position n + p its clean copy.
    When blocks are decoded one after the other the mask is `BlockCausal(block)`. Packed documents:
    `& SameSegment(ids twice)`; their blocks start with the document where the positions do,
    `concatenate([t, n + t])` with t from `positions_in_documents`.

    Args:
        length: n, of one copy, a Python integer of at least 1; no need to be a multiple of `block`.
        block: tokens of a block, likewise.

    Raises:
        ValueError: not such integers.

    >>> print(BlockDiffusion(4, 2).picture(8, 8).rsplit(chr(10), 2)[0])
    ██······
    ██······
    ··████··
    ··████··
    ····██··
    ····██··
    ····████
    ····████
    """

    length: int
    block: int

    def __post_init__(self):
        for name in ("length", "block"):
            set_field(self, name, size(name, getattr(self, name)))

    def allows(self, query, key):
        noisy_query, noisy_key = query < self.length, key < self.length
        ahead = (query % self.length) // self.block - (key % self.length) // self.block
        inside = (query < 2 * self.length) & (key < 2 * self.length)
        from_noisy = (noisy_key & (ahead == 0)) | (~noisy_key & (ahead > 0))
        return inside & ((noisy_query & from_noisy) | (~noisy_query & ~noisy_key & (ahead >= 0)))

"""Block diffusion: noisy blocks attend to themselves and to the clean blocks before them."""

from ..foundation.fields import set_field, size
from ..foundation.pieces import piece
from .base import Mask


@piece
class BlockDiffusion(Mask):
    """The training mask of block diffusion, for a row of 2n tokens: a noisy copy, then a clean one.

    With b the block index of a token within its copy, a pair may attend if

        noisy query, noisy key:  b_q == b_k        noisy query, clean key:  b_k < b_q
        clean query, clean key:  b_k <= b_q        clean query, noisy key:  never

    (Arriola et al. 2025, arXiv:2503.09573). Position p < n is the noisy copy of token p, and n + p its clean copy. To
    decode one block after another, use `BlockCausal(block)`. For packed documents add `& SameSegment(ids)` with the ids
    repeated for both copies. To start blocks anew in each document, pass `key_positions=concatenate([t, n + t])` to the
    call, with t from `jattn.variants.sparse.positions_in_documents(ids)`.

    Args:
        length: n, the length of one copy, a Python int of at least 1. Need not be a multiple of `block`.
        block: the block size, a Python int of at least 1.

    Raises:
        ValueError: an argument is not such an integer.

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

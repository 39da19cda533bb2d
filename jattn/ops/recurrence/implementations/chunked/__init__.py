"""The chunked implementation of both recurrences.

`implementation` is what the operation calls, `bodies` what a chunk computes, `chunks` the loop over chunks, `decays`
the decays between the tokens of a chunk, and `triangular` the delta rule's systems of equations.
"""

from .implementation import Chunked

__all__ = ["Chunked"]

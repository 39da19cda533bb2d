"""The implementations of attention, in the order in which the default tries them.

To add one: a folder here with an `Implementation`, and a row below. What it is asked for, in the layout of
`jattn.attention` (`[..., length, heads, dim]`), with the query and key that the similarity has prepared and every piece
of the call aligned to `[batch..., head, query, key]`:

    run(call, query, key, value) -> Partial(out, lse, remainder)

For a row of scores s_j over the keys j that the query may attend to, with p_j = exp(s_j - lse):

    lse = log Σ_j exp(s_j),    out = Σ_j p_j value_j

A streaming implementation sees the keys a tile at a time. It keeps the largest score so far m, the mass
l = Σ exp(s_j - m) and the sum a = Σ exp(s_j - m) value_j, and a tile with the scores s' and values v' updates them
(online softmax, Milakov & Gimelshein 2018, arXiv:1805.02867; Rabe & Staats 2021, arXiv:2112.05682):

    m' = max(m, max_j s'_j),    c = exp(m - m')
    l' = c l + Σ_j exp(s'_j - m'),    a' = c a + Σ_j exp(s'_j - m') v'_j

At the end lse = m + log l and out = a / l. `remainder` is what rounding removed from lse (see `Partial`). A sink, or
whatever else the normalizer does to a whole row, is applied to the result (`Normalizer.rescale`).
"""

from ....foundation.deprecation import deprecation
from ...dispatch import Operation, Row

_HERE = __name__.rpartition(".")[0]

ATTENTION = Operation(
    "attention",
    (
        Row("tiled", f"{_HERE}.tiled", "Tiled"),
        Row("reference", f"{_HERE}.reference", "Reference"),
    ),
    renamed=(("chunked", "tiled", deprecation("`implementation='chunked'`", "`'tiled'`", removed_in="0.3")),),
)
"""The first that is for the target and does not refuse a call runs it."""

"""The implementations of attention, in the order in which the default tries them.

To add one, add a folder with an `Implementation` and a row below. It computes

    run(call, query, key, value) -> Partial(out, lse, remainder)

in the layout of `jattn.attention` (`[..., length, heads, dim]`), with the query and key prepared by the similarity, and
all pieces of the call aligned to `[batch..., head, query, key]`. For a row of scores s_j over the keys j that the query
may attend to:

    lse = log Σ_j exp(s_j),    out = Σ_j exp(s_j - lse) value_j

`remainder` is the rounding error of lse (see `Partial`). An implementation that sees one tile of keys at a time derives
from `jattn.ops.attention.streaming.Streaming`, which has the equations of the online softmax and of the backward pass.
"""

from ....foundation.deprecation import deprecation
from ...dispatch import Operation, Row

_HERE = __name__.rpartition(".")[0]

ATTENTION = Operation(
    "attention",
    (
        Row(
            "pallas_tpu",
            f"{_HERE}.pallas_tpu",
            "PallasTPU",
            ("tpu",),
            "To compile for a TPU that is not here, trace inside of `jattn.compiled_for('tpu v6e')`; to check values "
            "without one, pass `jattn.implementations.PallasTPU(interpret=True)`",
        ),
        Row("tiled", f"{_HERE}.tiled", "Tiled"),
        Row("reference", f"{_HERE}.reference", "Reference"),
    ),
    renamed=(("chunked", "tiled", deprecation("`implementation='chunked'`", "`'tiled'`", removed_in="0.3")),),
)
"""The first row that is for the target and does not refuse a call runs it."""

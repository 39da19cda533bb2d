"""Every piece of the library, lowered: tiles and gradients equal those of `tile.py`, or it is refused by name."""

import jax.numpy as jnp
import pytest
from cases import CASES
from lowered_tiles import check
from measure import draw, keywords
from tiers import rows

from jattn.ops.attention.call import Pieces, prepare
from jattn.ops.attention.implementations.lowering import MOSAIC, lower, offset_of

REFUSED = {
    "a table of the offsets in a grid": "`RelativeGrid` needs `gather` of a query and a key at once, in a table of 117"
}
"""What the library has and Mosaic cannot evaluate in a tile."""

ALWAYS = {
    "a where of two masks",
    "a function over an array",
    "block diffusion",
    "table of blocks",
    "keys chosen by each query",
    "dense",
    "flags of queries and keys, and of heads that see summaries",
    "neighborhood",
    "fixed, in documents",
    "dot, a scale per head",
    "bias of queries and of keys",
    "relative buckets",
    "relative logits of queries",
    "relative logits from a table, of coordinates",
    "a table of the offsets in a grid",
    "bias, then soft cap, then alibi, causal",
    "sigmoid",
}


def prepared(case, seed=0):
    inputs = draw(case, seed)
    arrays = {name: jnp.asarray(array) for name, array in inputs.arrays.items()}
    given = keywords(case, arrays)
    call, *_ = prepare(*map(jnp.asarray, (inputs.query, inputs.key, inputs.value)), Pieces(**given))
    return call


@pytest.mark.parametrize("case", rows(CASES, ALWAYS, lambda case: case.name))
def test_tiles_equal_the_whole(case):
    call = prepared(case)
    if case.name in REFUSED:
        refusal = lower(call, MOSAIC, offset=offset_of(call)).refusal
        assert refusal is not None and REFUSED[case.name] in refusal
        return
    check(call)

"""Every piece of the library, lowered: its tiles and gradients equal those of `tile.py`."""

import dataclasses

import jax.numpy as jnp
import pytest
from cases import CASES
from lowered_tiles import check
from measure import draw, keywords
from tiers import rows

from jattn.ops.attention.call import Pieces, prepare
from jattn.ops.attention.implementations.lowering import MOSAIC, lower

ALWAYS = {
    "a function over an array",
    "keys chosen by each query",
    "dense",
    "flags of queries and keys, and of heads that see summaries",
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
    check(prepared(case))


def test_a_long_grid_is_refused():
    """What the library has and Mosaic cannot evaluate in a tile, if there are too many pairs for an array of them."""
    case = next(one for one in CASES if one.name == "a table of the offsets in a grid")
    refusal = lower(prepared(case), dataclasses.replace(MOSAIC, pairs=2737)).refusal
    assert refusal is not None and "`RelativeGrid` needs `gather` of a query and a key at once" in refusal
    assert "a table of 117 entries" in refusal and "2,738 numbers" in refusal

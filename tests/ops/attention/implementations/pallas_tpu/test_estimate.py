"""The estimate that `explain` prints: visited tiles times what the compiler says that a tile costs."""

import jax
import numpy as np
import pytest

import jattn
from jattn import masks, scores
from jattn.foundation.target import as_target
from jattn.ops.attention.call import Pieces, prepare
from jattn.ops.attention.implementations.pallas_tpu import PallasTPU, estimate

LENGTH, HEADS = 4096, 8  # 8 tiles: 28 full and 8 partial ones, causal


def shapes(dtype="bfloat16", batch=1, dim=128):
    query = jax.ShapeDtypeStruct((batch, LENGTH, HEADS, dim), dtype)
    key = jax.ShapeDtypeStruct((batch, LENGTH, 2, dim), dtype)
    return query, key, key


def estimated(*arrays, target="tpu v6e", **pieces):
    """The estimate of a call."""
    found = []

    def look(query, key, value):
        call, *_ = prepare(query, key, value, Pieces(**pieces))
        kernel = PallasTPU()
        plan, _ = kernel.describe(call)
        found.append(estimate.estimate(call, plan, as_target(target)))

    with jattn.compiled_for(target):
        jax.eval_shape(look, *arrays)
    return found[0]


def test_visited_tiles_are_counted():
    forward, backward = estimate.COSTS["v6e", "bfloat16", 128]
    found = estimated(*shapes(), mask=masks.Causal())
    for cycles, cost in ((found.forward, forward), (found.backward, backward)):
        assert cycles == HEADS * (28 * cost.full + 8 * cost.partial + 8 * cost.row)
    assert not found.relation
    assert estimated(*shapes(batch=3), mask=masks.Causal()).forward == 3 * found.forward
    full = estimated(*shapes())
    assert full.forward == HEADS * (64 * forward.full + 8 * forward.row)


@pytest.mark.parametrize(
    "arrays, pieces, relation",
    [
        (shapes(), dict(scores=scores.SoftCap(30.0)), "at least"),
        (shapes(dim=64), {}, "at most"),
        (shapes(dim=64), dict(dropout=jattn.Dropout(0.1, np.zeros(2, np.uint32))), "about"),
    ],
)
def test_the_table_has_something_like_it(arrays, pieces, relation):
    found = estimated(*arrays, **pieces)
    assert found.relation == relation and f"{relation} {found.forward:,.0f} cycles forward" in str(found)
    assert found.forward == estimated(*shapes()).forward


@pytest.mark.parametrize(
    "arrays, target, pieces, reason",
    [
        (shapes("float16"), "tpu v6e", {}, "no kernel of float16 with 128 features was measured for tpu v6e"),
        (shapes(dim=512), "tpu v6e", {}, "no kernel of bfloat16 with 512 features was measured for tpu v6e"),
        (shapes("float32"), "tpu v5p", {}, "no kernel of float32 with 128 features was measured for tpu v5p"),
        (shapes(), "tpu", {}, "no kernel of bfloat16 with 128 features was measured for tpu"),
        ((*shapes()[:2], shapes("float32")[2]), "tpu v6e", {}, "query, key and value differ in dtype"),
        (shapes(), "tpu v6e", {"mask": masks.Lengths(jax.ShapeDtypeStruct((1,), "int32"))}, "decided at run time"),
    ],
)
def test_no_estimate_without_a_figure(arrays, target, pieces, reason):
    """The explanation says that there is none, and why."""
    said = jattn.explain(*arrays, target=target, implementation=PallasTPU(), **pieces).memory
    assert estimate.NONE in said and reason in said


def explained(batch, length, heads, dim, target="tpu v6e", dtype="bfloat16", **pieces):
    """What `explain` says of a step of decoding."""
    query = jax.ShapeDtypeStruct((batch, 1, heads[0], dim), dtype)
    key = jax.ShapeDtypeStruct((batch, length, heads[1], dim), dtype)
    return jattn.explain(query, key, key, target=target, **pieces).memory


def test_a_step_of_decoding_copies_while_it_computes():
    """2 MiB a tile at 1,640 GB/s and 1.75 GHz take 2,238 cycles; 20 tiles of three sequences are not empty."""
    computed = estimate.DECODING["v6e", "bfloat16", "tokens", 128, 8] * 512 * 8
    lengths = masks.Lengths(np.array([4096, 5000, 1000]))
    said = explained(3, 8192, (32, 8), 128, mask=lengths)
    total = 20 * 2**21 / (1640 / 1.75) + computed
    assert (
        f"2,238 cycles for a tile of 512 keys (bound by copies at 1,640 GB/s; computing takes {computed:,.0f})" in said
    )
    assert f"; {total:,.0f} for 20 tiles" in said


def test_a_step_whose_tiles_or_cost_are_unknown():
    said = explained(3, 8192, (32, 8), 128, mask=masks.Lengths(jax.ShapeDtypeStruct((3,), "int32")))
    assert "for 48 tiles, of which lengths may leave some out" in said
    assert "at least, for copies at 1,640 GB/s" in explained(3, 8192, (96, 8), 128)
    assert "bound by computing; copies at 1,640 GB/s take 1,259" in str(
        estimate.StepEstimate(tile=1024, copies=1259, compute=1815, tiles=4, known=True, bandwidth=1640e9)
    )
    assert "estimate" not in explained(1, 8192, (32, 8), 128, target="tpu")

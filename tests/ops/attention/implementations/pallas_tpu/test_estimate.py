"""The estimate that `explain` prints: visited tiles times what the compiler says that a tile costs."""

import jax
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
    forward, backward = estimate.COSTS["v6e"]
    found = estimated(*shapes(), mask=masks.Causal())
    for cycles, cost in ((found.forward, forward), (found.backward, backward)):
        assert cycles == HEADS * (28 * cost.full + 8 * cost.partial + 8 * cost.row)
    assert found.exact
    assert estimated(*shapes(batch=3), mask=masks.Causal()).forward == 3 * found.forward
    full = estimated(*shapes())
    assert full.forward == HEADS * (64 * forward.full + 8 * forward.row)


def test_scores_cost_more():
    found = estimated(*shapes(), scores=scores.SoftCap(30.0))
    assert not found.exact and "at least" in str(found)


@pytest.mark.parametrize(
    "arrays, target",
    [(shapes("float32"), "tpu v6e"), (shapes(dim=256), "tpu v6e"), (shapes(), "tpu v3"), (shapes(), "tpu")],
    ids=["float32", "256 features", "v3", "unknown"],
)
def test_no_estimate_without_a_figure(arrays, target):
    assert estimated(*arrays, target=target) is None

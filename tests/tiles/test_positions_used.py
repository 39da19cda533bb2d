"""Whether positions matter to a mask or a score, read from its jaxpr."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import masks, scores
from jattn.pieces import align
from jattn.tiles import mask_reads_positions, score_reads_positions

TABLE = jnp.arange(8)


@pytest.mark.parametrize(
    ("mask", "used"),
    [
        (None, (False, False)),
        (masks.Causal(), (True, True)),
        (masks.Sinks(3), (False, True)),
        (masks.Lengths(np.array([3, 4, 5])), (False, True)),
        (masks.SlidingWindow(np.array([3, 4]), 0), (True, True)),
        (masks.SameSegment(np.zeros(8, int)), (False, False)),
        (masks.Dense(np.ones((2, 8, 8), bool)), (False, False)),
        (masks.Blocks(np.ones((2, 2, 2), bool), 4), (True, True)),
        (masks.SameSegment(np.zeros(8, int)) & masks.of(lambda q, k: k < 3), (False, True)),
        (masks.of(lambda q, k: TABLE[k] == 1), (False, True)),
        (masks.of(lambda q, k: jax.jit(lambda a, b: b + 0 * k)(q, k) > 3), (False, True)),
        (masks.of(lambda q, k: divmod(q, 3)[0] > 1), (True, False)),
    ],
)
def test_masks(mask, used):
    aligned = align(mask, (3,), {"head": 2, "query": 8, "key": 8})
    assert mask_reads_positions(aligned) == used
    assert jax.jit(lambda mask: jnp.array(mask_reads_positions(mask)))(aligned).tolist() == list(used)


def test_a_computation_whose_result_is_dropped_does_not_count():
    def allows(q, k):
        unused = q * 2  # traced, and dead
        del unused
        return k > 3

    assert mask_reads_positions(align(masks.of(allows), (), {"head": 1, "query": 8, "key": 8})) == (False, True)


@pytest.mark.parametrize(
    ("score", "used"),
    [
        (scores.of(lambda s, q, k: s + k), (False, True)),
        (scores.of(lambda s, q, k: s * 2), (False, False)),
        (scores.Bias(np.zeros((2, 8, 8), np.float32)), (False, False)),
        (scores.Alibi(np.ones(2, np.float32)), (True, True)),
        (scores.SoftCap(3.0), (False, False)),
        (scores.RelativeBuckets(np.zeros((32, 2), np.float32)), (True, True)),
    ],
)
def test_scores(score, used):
    assert score_reads_positions(align(score, (3,), {"head": 2, "query": 8, "key": 8})) == used

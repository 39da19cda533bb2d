"""Keys near centers: tiles out of reach are skipped, also if the centers are computed."""

import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn.masks import Near
from jattn.ops.attention.call import Pieces, prepare
from jattn.ops.attention.plan import make_plan


@pytest.mark.parametrize("known", [True, False])
def test_tiles_out_of_reach_are_skipped(known):
    centers = np.linspace(0, 4000, 64, dtype=np.float32)
    q, k = jnp.zeros((64, 1, 1)), jnp.zeros((4096, 1, 1))
    mask = Near(centers if known else jnp.asarray(centers), 100.0)
    pieces = prepare(q, k, k, Pieces(mask))[0].pieces
    plan = make_plan(pieces.mask, pieces.query_positions, pieces.key_positions, 16, 256)
    assert plan.known == known
    assert int((np.asarray(plan.states) != 0).sum()) < 0.5 * plan.states.size


def test_what_near_refuses():
    with pytest.raises(ValueError, match="`centers` must be a floating-point array"):
        Near(np.arange(3), 2.0)
    with pytest.raises(ValueError, match="`distance` must be a number above 0"):
        Near(np.zeros(3, np.float32), 0.0)


def test_centers_in_bfloat16_are_near_the_same_keys():
    """Beyond 256 bfloat16 has even numbers only: positions must not be compared in it."""
    mask = Near(jnp.array([402.0], jnp.bfloat16), 2.0)
    weights = jattn.attention_weights(jnp.ones((1, 1, 4)), jnp.ones((600, 1, 4)), mask=mask, queries=[0], heads=[0])
    np.testing.assert_array_equal(np.flatnonzero(weights), np.arange(400, 405))

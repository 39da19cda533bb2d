"""Block diffusion, pair by pair and packed, and its tiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import normal
from pattern_oracle import dense, written_out

import jattn
from jattn import masks
from jattn.masks import BlockDiffusion
from jattn.variants.sparse import positions_in_documents


def diffusion(length, block):
    def pair(h, i, j):
        noisy_query, noisy_key = i < length, j < length
        own, other = i % length // block, j % length // block
        if noisy_query:
            return own == other if noisy_key else other < own
        return not noisy_key and other <= own

    return pair


@pytest.mark.parametrize(
    ("length", "block"), [(7, 3), *(pytest.param(*one, marks=pytest.mark.exhaustive) for one in ((6, 2), (4, 4)))]
)
def test_block_diffusion_is_its_definition(length, block):
    want = written_out(2 * length, 1, diffusion(length, block))
    np.testing.assert_array_equal(dense(BlockDiffusion(length, block), 2 * length), want)


def test_block_diffusion_packed_and_skipped():
    ids = np.array([1, 1, 1, 2, 2, 2, 2])
    at = positions_in_documents(ids)
    twice, positions = np.concatenate([ids, ids]), np.concatenate([at, 7 + at])
    query, key, value = (jnp.asarray(one) for one in normal(0, (14, 1, 4), (14, 1, 4), (14, 1, 4)))
    mask = BlockDiffusion(7, 2) & masks.SameSegment(twice)
    got = jattn.attention(query, key, value, mask=mask, query_positions=positions, key_positions=positions)
    for start, stop in ((0, 3), (3, 7)):
        rows = np.r_[start:stop, 7 + start : 7 + stop]
        alone = jattn.attention(query[rows], key[rows], value[rows], mask=BlockDiffusion(stop - start, 2))
        np.testing.assert_allclose(got[rows], alone, atol=1e-6)
    shape = jax.ShapeDtypeStruct((1024, 1, 8), "float32")
    tiles = jattn.implementations.Tiled(64, 64)
    plan = jattn.explain(shape, shape, shape, mask=BlockDiffusion(512, 64), implementation=tiles).plan
    assert plan.counts() == (8 + 28 + 36, 8 + 28 + 36, 256)
    with pytest.raises(ValueError, match="`block` must be a Python integer of at least 1; got 0"):
        BlockDiffusion(4, 0)

"""BigBird: the union of its parts block by block, and invalid tables."""

import jax
import numpy as np
import pytest
from pattern_oracle import dense, written_out

import jattn
from jattn.ops.attention.implementations.tiled import Tiled
from jattn.variants.sparse import bigbird_etc_mask, bigbird_mask, random_blocks


def of_internal(block, blocks, table):
    def pair(h, i, j):
        row, column = i // block, j // block
        if row in (0, blocks - 1) or column in (0, blocks - 1):
            return True
        return abs(row - column) <= 1 or column in table[h, row - 1]

    return pair


@pytest.mark.parametrize(
    ("length", "block", "count"),
    [(23, 3, 1), *(pytest.param(*one, marks=pytest.mark.exhaustive) for one in ((24, 3, 2), (6, 1, 0)))],
)
def test_internal_is_its_definition(length, block, count):
    table = random_blocks(length, block, heads=2, count=count, seed=1)
    want = written_out(length, 2, of_internal(block, -(-length // block), table))
    np.testing.assert_array_equal(dense(bigbird_mask(length, block, table), length, heads=2), want)
    assert not want.all((1, 2)).any(), "never full"


def test_external_is_its_definition():
    length, block, extra = 17, 3, 2
    table = random_blocks(length, block, heads=2, count=1, seed=0, internal=False)

    def pair(h, i, j):
        if i < extra or j < extra:
            return True
        row, column = (i - extra) // block, (j - extra) // block
        return abs(row - column) <= 1 or column in table[h, row]

    mask = bigbird_etc_mask(length, block, table, extra)
    np.testing.assert_array_equal(dense(mask, length + extra, heads=2), written_out(length + extra, 2, pair))


@pytest.mark.parametrize("internal", [True, False])
def test_sampler_never_repeats(internal):
    table = random_blocks(64, 2, heads=5, count=4, seed=7, internal=internal)
    first = 1 if internal else 0
    assert table.shape == (5, 32 - 2 * first, 4) and table.dtype == np.int32
    for head in table:
        for row, chosen in enumerate(head, first):
            barred = {row - 1, row, row + 1} | ({0, 31} if internal else set())
            assert len(set(chosen)) == 4 and not barred & set(chosen) and min(chosen) >= 0 and max(chosen) < 32
    np.testing.assert_array_equal(table, random_blocks(64, 2, heads=5, count=4, seed=7, internal=internal))
    assert (table != random_blocks(64, 2, heads=5, count=4, seed=8, internal=internal)).any()
    counts = np.bincount(table.ravel(), minlength=32)
    assert (counts[2:-2] > 0).all(), "every block has its chance"


def test_tiles_follow_the_blocks_of_each_head():
    shape = jax.ShapeDtypeStruct((4096, 2, 8), "float32")
    table = random_blocks(4096, 64, heads=2, count=3, seed=0)
    plan = jattn.explain(shape, shape, shape, mask=bigbird_mask(4096, 64, table), implementation=Tiled(64, 64)).plan
    # Two full rows; three window, two global and three random blocks in the others, of which two see a global one.
    wanted = 2 * 64 + 62 * 8 - 2
    assert plan.counts() == (2 * wanted, 2 * wanted, 2 * 64 * 64)


def test_positions_behind_the_last_block_are_nobodys():
    table = random_blocks(14, 2, heads=1, count=1, seed=0)
    allowed = dense(bigbird_mask(14, 2, table), 16)[0]
    assert allowed[:14, :14].any() and not allowed[14:].any() and not allowed[:, 14:].any()


def test_bad_input_is_refused():
    table = random_blocks(16, 2, heads=1, count=1, seed=0)
    with pytest.raises(
        ValueError, match=r"`length` must have at least 7 blocks with 1 random ones.*attend without a mask"
    ):
        bigbird_mask(12, 2, table)
    with pytest.raises(ValueError, match="`seed` must be an int of at least 0"):
        random_blocks(16, 2, heads=1, count=1, seed=jax.random.key(0))
    with pytest.raises(ValueError, match="`count` must be an int of at least 0; got -1"):
        random_blocks(16, 2, heads=1, count=-1, seed=0)
    with pytest.raises(ValueError, match="`length` must have at least 9 blocks"):
        random_blocks(16, 2, heads=1, count=3, seed=0)
    with pytest.raises(ValueError, match=r"`random_blocks` must have shape \[heads, 7, count\] for 9 blocks"):
        bigbird_mask(18, 2, table)
    for block, row in ((2, 2), (0, 3), (7, 3)):
        wrong = table.copy()
        wrong[0, row - 1, 0] = block
        message = f"must not repeat blocks that its rows see anyway; head 0, row {row} names block {block}"
        with pytest.raises(ValueError, match=message):
            bigbird_mask(16, 2, wrong)
    twice = np.full((1, 7, 2), 4)
    twice[:] = random_blocks(18, 2, heads=1, count=2, seed=0)
    twice[0, 4] = 3
    with pytest.raises(ValueError, match="must not name a block twice in a row; head 0, row 5 names block 3"):
        bigbird_mask(18, 2, twice)
    with pytest.raises(ValueError, match="`random_blocks` must be blocks from 0 to 7; got -1"):
        bigbird_mask(16, 2, np.full_like(table, -1))
    with pytest.raises(ValueError, match="`random_blocks` must be integers"):
        bigbird_mask(16, 2, table.astype(float))
    with pytest.raises(ValueError, match="`global_tokens` must be a positive int; got 0"):
        bigbird_etc_mask(16, 2, random_blocks(16, 2, heads=1, count=1, seed=0, internal=False), 0)
    with pytest.raises(ValueError, match="`block` must be a positive int; got 0"):
        bigbird_mask(16, 0, table)

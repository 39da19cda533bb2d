"""Masks by blocks: chunks, block-causal, a table of blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mask_pairs import allowed, defined
from pattern_oracle import dense, written_out

import jattn
from jattn import masks


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (masks.Chunked, lambda n: lambda q, k: q // n == k // n),
        (masks.BlockCausal, lambda n: lambda q, k: k // n <= q // n),
    ],
)
def test_chunks(make, rule):
    for size in (1, 4, 100):
        np.testing.assert_array_equal(allowed(make(size), 13, 15)[0], defined(rule(size), 13, 15))
    far = allowed(make(4), 6, 9, query=range(7, 13), key=range(9))[0]
    np.testing.assert_array_equal(far, defined(rule(4), range(7, 13), range(9)))
    by_both = np.array([[1, 3], [5, 2], [4, 4]])
    found = allowed(make(by_both), 7, 9, (3,), 2)
    for b in range(3):
        for h in range(2):
            np.testing.assert_array_equal(found[b, h], defined(rule(by_both[b, h]), 7, 9))


def _by_table(table, size):
    rows, columns = table.shape
    return lambda q, k: 0 <= q < rows * size and 0 <= k < columns * size and table[q // size, k // size]


@pytest.mark.parametrize("backend", [np, jnp])
@pytest.mark.parametrize("lead", [(1,), (3,), (1, 3), (2, 1), (2, 3)])
def test_a_table_of_blocks(backend, lead):
    table = np.random.default_rng(0).random((*lead, 3, 4)) < 0.5
    query, key = range(-2, 17), range(-3, 23)  # both ends lie beyond the table
    found = allowed(masks.Blocks(backend.asarray(table), 5), len(query), len(key), (2,), 3, query=query, key=key)
    full = np.broadcast_to(table, (2, 3, 3, 4))
    for b in range(2):
        for h in range(3):
            np.testing.assert_array_equal(found[b, h], defined(_by_table(full[b, h], 5), query, key))


def test_a_table_is_read_by_scalars():
    table = np.eye(3, dtype=bool)
    mask = masks.Blocks(table[None], 2)
    read = jax.jit(lambda q, k: mask.replace(table=mask.table).allows(q, k))
    for q, k in [(0, 1), (0, 2), (5, 4), (6, 6), (-1, -1)]:
        assert bool(np.squeeze(read(q, k))) == bool(_by_table(table, 2)(q, k))


def test_an_empty_table_allows_nothing():
    assert not allowed(masks.Blocks(np.zeros((1, 0, 3), bool), 2), 4, 5).any()
    assert not allowed(~masks.Blocks(np.zeros((1, 3, 0), bool), 2) & masks.Sinks(0), 4, 5).any()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: masks.Chunked(0), ("`size`", "at least 1")),
        (lambda: masks.BlockCausal(-4), ("`size`", "-4")),
        (lambda: masks.Blocks(np.ones((2, 3, 4)), 2), ("`table`", "boolean", "float64")),
        (lambda: masks.Blocks(np.ones((3, 4), bool), 2), ("`table`", "(3, 4)", "head", "not guessed")),
        (lambda: masks.Blocks(np.ones((1, 3, 4), bool), 0), ("`size`", "0")),
        (lambda: masks.Blocks(np.ones((1, 3, 4), bool), jnp.array(2)), ("`size`", "Python integer")),
    ],
)
def test_bad_arguments(make, words):
    with pytest.raises(ValueError) as raised:
        make()
    for word in words:
        assert word in str(raised.value)


def test_a_table_that_does_not_fit_the_heads_is_refused():
    with pytest.raises(ValueError, match=r"`Blocks.table`.*head"):
        allowed(masks.Blocks(np.ones((2, 3, 4), bool), 2), 5, 5, (), 3)


def test_blocked_local_is_its_definition():
    mask = masks.BlockedLocal(3, before=np.array([1, 2]), after=np.array([1, 0]))
    want = written_out(11, 2, lambda h, i, j: -(1, 2)[h] <= j // 3 - i // 3 <= (1, 0)[h])
    np.testing.assert_array_equal(dense(mask, 11, heads=2), want)
    shape = jax.ShapeDtypeStruct((1024, 1, 8), "float32")
    tiles = jattn.implementations.Tiled(64, 64)
    plan = jattn.explain(shape, shape, shape, mask=masks.BlockedLocal(64), implementation=tiles).plan
    assert plan.counts() == (16 + 2 * 15, 16 + 2 * 15, 256)
    with pytest.raises(ValueError, match="`size` must be a Python integer of at least 1"):
        masks.BlockedLocal(0)
    with pytest.raises(ValueError, match="`before` must be an integer of at least 0"):
        masks.BlockedLocal(2, -1)

"""Blocked local, trees, block diffusion, shared prefixes and packed documents, pair by pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import normal
from pattern_oracle import dense, written_out

import jattn
from jattn import masks
from jattn.variants.sparse import (
    BlockDiffusion,
    BlockedLocal,
    Flagged,
    positions_in_documents,
    shared_prefix_attention,
    shared_prefix_mask,
    tree_depths,
    tree_mask,
)


def test_blocked_local_is_its_definition():
    mask = BlockedLocal(3, before=np.array([1, 2]), after=np.array([1, 0]))
    want = written_out(11, 2, lambda h, i, j: -(1, 2)[h] <= j // 3 - i // 3 <= (1, 0)[h])
    np.testing.assert_array_equal(dense(mask, 11, heads=2), want)
    shape = jax.ShapeDtypeStruct((1024, 1, 8), "float32")
    tiles = jattn.implementations.Tiled(64, 64)
    plan = jattn.explain(shape, shape, shape, mask=BlockedLocal(64), implementation=tiles).plan
    assert plan.counts() == (16 + 2 * 15, 16 + 2 * 15, 256)
    with pytest.raises(ValueError, match="`size` must be a Python integer of at least 1"):
        BlockedLocal(0)
    with pytest.raises(ValueError, match="`before` must be an integer of at least 0"):
        BlockedLocal(2, -1)


def ancestors(parents):
    found = []
    for node in range(len(parents)):
        path, at = set(), node
        while at >= 0:
            path.add(at)
            at = parents[at]
        found.append(path)
    return found


@pytest.mark.parametrize("traced", [False, True])
def test_tree_is_its_definition(traced):
    parents = np.array([[-1, 0, 0, 1, 1, 3, -1, 6], [4, 0, -1, 2, 2, 4, 5, 6]])  # the second in no order
    prefix = np.array([3, 5])
    at = prefix[:, None] + np.arange(8)
    make = lambda parents: dense(tree_mask(parents, prefix), 8, 13, query_positions=at, batch=(2,))[:, 0]  # noqa: E731
    found = np.asarray(jax.jit(_table)(parents)) if traced else make(parents)
    for index in range(2):
        paths = ancestors(parents[index])
        if traced:
            want = [[j in paths[i] for j in range(8)] for i in range(8)]
            np.testing.assert_array_equal(found[index, 0], want)
            continue
        p = prefix[index]
        want = [[j < p or (j - p) in paths[i] for j in range(13)] for i in range(8)]
        np.testing.assert_array_equal(found[index], want)
        np.testing.assert_array_equal(tree_depths(parents)[index], [len(path) - 1 for path in paths])


def _table(parents):
    return jax.tree.leaves(tree_mask(parents))[0]


def test_tree_equals_each_branch_alone():
    """What a node computes is what decoding its branch token by token computes."""
    parents, prefix = np.array([-1, 0, 0, 1, 2]), 4
    query, key, value = (jnp.asarray(one) for one in normal(0, (9, 2, 4), (9, 2, 4), (9, 2, 4)))
    at = prefix + np.arange(5)
    got = jattn.attention(query[4:], key, value, mask=tree_mask(parents, prefix), query_positions=at)
    for node, path in enumerate(ancestors(parents)):
        rows = np.array([*range(prefix), *(prefix + step for step in sorted(path))])
        alone = jattn.attention(query[prefix + node][None], key[rows], value[rows])
        np.testing.assert_allclose(got[node], alone[0], atol=1e-6)


def test_tree_refuses_what_is_none():
    with pytest.raises(ValueError, match=r"`parents` must not go round in a circle; got \[1, 0\]"):
        tree_mask([1, 0])
    with pytest.raises(ValueError, match="`parents` must be nodes, from 0 to 1, or -1 for none; got 0 to 2"):
        tree_mask([2, 0])
    with pytest.raises(ValueError, match="`start` must be an integer of at least 0"):
        tree_mask([-1], -1)
    with pytest.raises(ValueError, match="`parents` must be integers"):
        tree_mask(np.ones(3))


def diffusion(length, block):
    def pair(h, i, j):
        noisy_query, noisy_key = i < length, j < length
        own, other = i % length // block, j % length // block
        if noisy_query:
            return own == other if noisy_key else other < own
        return not noisy_key and other <= own

    return pair


@pytest.mark.parametrize(("length", "block"), [(6, 2), (7, 3), (4, 4)])
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


def test_shared_prefix_is_its_definition():
    ids = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    want = written_out(8, 1, lambda h, i, j: j <= i and ids[j] in (0, ids[i]))
    np.testing.assert_array_equal(dense(shared_prefix_mask(ids), 8), want)
    with pytest.raises(ValueError, match="`query_ids` must be"):
        shared_prefix_mask(np.ones(3))


def test_shared_prefix_refuses():
    shapes = (3, 2, 4, 3), (3, 2, 2, 3), (3, 2, 2, 2), (5, 2, 3), (5, 2, 2)
    arrays = normal(0, *shapes)
    with pytest.raises(ValueError, match="`prefix_key` must have shape"):
        shared_prefix_attention(*arrays[:3], arrays[4], arrays[4])
    with pytest.raises(ValueError, match=r"got \['scores'\].*shared_prefix_mask"):
        shared_prefix_attention(*arrays, scores=())


def test_positions_start_again():
    ids = np.array([[5, 5, 5, 2, 2, 9], [1, 2, 2, 2, 2, 2]])
    want = [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4]]
    np.testing.assert_array_equal(positions_in_documents(ids), want)
    np.testing.assert_array_equal(jax.jit(positions_in_documents)(ids), want)
    np.testing.assert_array_equal(positions_in_documents(ids[:, :1]), [[0], [0]])


def test_flags_that_are_none():
    with pytest.raises(ValueError, match="`query_flags` or `key_flags` must be given"):
        Flagged()
    with pytest.raises(ValueError, match="`key_flags` must be a boolean array"):
        Flagged(key_flags=np.ones(3))

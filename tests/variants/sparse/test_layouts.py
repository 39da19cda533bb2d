"""Trees, shared prefixes and packed documents, pair by pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import normal
from pattern_oracle import dense, written_out

import jattn
from jattn.variants.sparse import (
    positions_in_documents,
    shared_prefix_attention,
    shared_prefix_mask,
    tree_depths,
    tree_mask,
)


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

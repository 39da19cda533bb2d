"""`&`, `|`, `~`, functions as masks, and masks as data: pytrees, arguments of transformations, values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mask_pairs import allowed, defined

from jattn import masks

IDS = np.array([1, 1, 2, 2, 2, 0, 0])
EVERY = [
    masks.Causal(),
    masks.SlidingWindow(3, 0),
    masks.SlidingWindow(np.array([3, 1]), None),
    masks.Dilated(2, np.array([1, 3])),
    masks.Strided(3),
    masks.Prefix(np.array([2, 4])),
    masks.Sinks(2),
    masks.Chunked(np.array([[2, 3], [4, 1]])),
    masks.BlockCausal(3),
    masks.Blocks(np.eye(4, dtype=bool)[None], 2),
    masks.SameSegment(IDS, padding_id=0),
    masks.Lengths(np.array([3, 5]), 4),
    masks.Neighborhood((7,), 3),
    masks.Axial((1, 7), 1),
    masks.Dense(np.tri(7, dtype=bool)[None]),
    masks.of(lambda q, k: (q + k) % 3 == 0),
    masks.Causal() & ~masks.SameSegment(IDS) | masks.Sinks(1),
]
names = [str(mask).split("(")[0] for mask in EVERY]


def test_combinations_are_the_boolean_ones():
    past, near, first = masks.Causal(), masks.SlidingWindow(2, 2), masks.Sinks(1)
    mask = past & ~near | first & ~(past | near)
    wanted = defined(
        lambda q, k: (k <= q and not abs(q - k) <= 2) or (k < 1 and not (k <= q or abs(q - k) <= 2)), 9, 11
    )
    np.testing.assert_array_equal(allowed(mask, 9, 11)[0], wanted)


@pytest.mark.parametrize("mask", EVERY, ids=names)
def test_not_is_the_complement(mask):
    np.testing.assert_array_equal(allowed(~mask, 7, 7, (2,), 2), ~allowed(mask, 7, 7, (2,), 2))
    np.testing.assert_array_equal(allowed(~~mask, 7, 7, (2,), 2), allowed(mask, 7, 7, (2,), 2))


def test_or_is_a_plain_union_and_and_keeps_what_it_is_given():
    future = np.triu(np.ones((7, 7), bool), 1)
    window = masks.SlidingWindow(1, 1)
    union = allowed(masks.Causal() | window, 7, 7)[0]
    np.testing.assert_array_equal(union, defined(lambda q, k: k <= q or abs(q - k) <= 1, 7, 7))
    for other in EVERY:
        causal = allowed(masks.Causal() & (window | other), 7, 7, (2,), 2)
        assert not (causal & future).any()
    packed = allowed(masks.Causal() & masks.SameSegment(IDS) & masks.SameSegment(IDS, padding_id=0), 7, 7)[0]
    np.testing.assert_array_equal(packed, defined(lambda q, k: k <= q and IDS[q] == IDS[k] != 0, 7, 7))


def test_functions_combine_on_either_side():
    wanted = defined(lambda q, k: k <= q and k % 2 == 0, 5, 6)
    np.testing.assert_array_equal(allowed(masks.Causal() & (lambda q, k: k % 2 == 0), 5, 6)[0], wanted)
    np.testing.assert_array_equal(allowed((lambda q, k: k % 2 == 0) & masks.Causal(), 5, 6)[0], wanted)
    wanted = defined(lambda q, k: k <= q or k % 2 == 0, 5, 6)
    np.testing.assert_array_equal(allowed((lambda q, k: k % 2 == 0) | masks.Causal(), 5, 6)[0], wanted)


@pytest.mark.parametrize("other", [np.ones((2, 2), bool), jnp.ones((2, 2), bool), True, 1, None, "causal"])
def test_only_masks_combine(other):
    for combine in (lambda: masks.Causal() & other, lambda: other | masks.Causal()):
        with pytest.raises(ValueError, match=r"`mask`.*Dense"):
            combine()


def test_a_function_must_return_one_boolean():
    for function in (
        lambda q, k: q - k,
        lambda q, k: 1.0 * q,
        lambda q, k: jnp.ones(3, bool),
        lambda q, k: (q < k,) * 2,
    ):
        with pytest.raises(ValueError, match=r"`function`.*boolean"):
            masks.of(function)
    with pytest.raises(ValueError, match="`function`"):
        masks.of(3)  # type: ignore[arg-type]


def test_a_function_may_close_over_arrays():
    group = jnp.array([0, 1, 0, 2, 1])
    mask = masks.of(lambda q, k: (group[q] == group[k]) & (k <= q))
    assert len(jax.tree.leaves(mask)) == 1
    np.testing.assert_array_equal(
        allowed(mask, 5, 5)[0], defined(lambda q, k: int(group[q]) == int(group[k]) and k <= q, 5, 5)
    )


@pytest.mark.parametrize("mask", EVERY, ids=names)
def test_is_a_pytree(mask):
    leaves, tree = jax.tree.flatten(mask)
    assert jax.tree.unflatten(tree, leaves) == mask
    assert jax.tree.map(lambda leaf: leaf, mask) == mask
    assert hash(jax.tree.unflatten(tree, leaves)) == hash(mask)
    assert all(isinstance(leaf, (np.ndarray, jax.Array)) for leaf in leaves)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), mask)  # nothing is checked
    assert jax.tree.structure(shapes) == tree
    assert mask != masks.Sinks(77)


@pytest.mark.parametrize("mask", EVERY, ids=names)
def test_is_an_argument_of_jit(mask):
    traces = []

    @jax.jit
    def evaluate(mask, query, key):
        traces.append(None)
        return mask.allows(query, key)

    query, key = np.arange(3), np.arange(3)
    if not jax.tree.leaves(mask):
        np.testing.assert_array_equal(evaluate(mask, query, key), mask.allows(query, key))
        evaluate(jax.tree.map(lambda leaf: leaf, mask), query, key)
    else:
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1)[0], mask) if not isinstance(mask, masks.Blocks) else mask
        evaluate(flat, query, key)
        evaluate(jax.tree.map(lambda leaf: leaf if leaf.dtype == bool else leaf + 1, flat), query, key)
    assert len(traces) == 1


def test_is_batched_by_vmap():
    lefts = jnp.array([[1, 2], [3, 0], [2, 2]])
    windows = masks.SlidingWindow(lefts, 0)  # the leading axis is mapped, the last is the heads
    found = jax.vmap(lambda mask: jnp.asarray(_two_heads(mask)))(windows)
    built = jax.vmap(lambda left: _two_heads(masks.SlidingWindow(left, 0)))(lefts)
    for i, left in enumerate(lefts):
        wanted = allowed(masks.SlidingWindow(left, 0), 5, 5, (), 2)
        np.testing.assert_array_equal(found[i], wanted)
        np.testing.assert_array_equal(built[i], wanted)
    tables = np.random.default_rng(0).random((3, 2, 2, 2)) < 0.5
    found = jax.vmap(_two_heads)(masks.Blocks(jnp.asarray(tables), 3))
    for i, table in enumerate(tables):
        np.testing.assert_array_equal(found[i], allowed(masks.Blocks(table, 3), 5, 5, (), 2))


def _two_heads(mask):
    from jattn.foundation.pieces import align

    aligned = align(mask, (), {"head": 2, "query": 5, "key": 5})
    return aligned.allows(np.arange(5).reshape(1, 5, 1), np.arange(5).reshape(1, 1, 5))


def test_tracers_pass_the_constructors():
    def build(number, ids, table, dense):
        return (
            masks.SlidingWindow(number, number),
            masks.Dilated(number, number),
            masks.Strided(number),
            masks.Prefix(number),
            masks.Sinks(number),
            masks.Chunked(number),
            masks.BlockCausal(number),
            masks.Lengths(number, number),
            masks.SameSegment(ids, padding_id=0),
            masks.Blocks(table, 2),
            masks.Dense(dense),
        )

    boolean = jax.ShapeDtypeStruct((1, 3, 3), bool)
    for shape in ((), (4,), (2, 4)):
        number, ids = jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct((2, 5), jnp.int32)
        jax.eval_shape(build, number, ids, boolean, boolean)
    build(jax.ShapeDtypeStruct((4,), jnp.int32), ids, boolean, boolean)  # shapes alone pass too


def test_equality_compares_values():
    assert masks.SlidingWindow(np.array([1, 2])) == masks.SlidingWindow(jnp.array([1, 2]))
    assert masks.SlidingWindow(np.array([1, 2])) != masks.SlidingWindow(np.array([1, 3]))
    assert masks.SlidingWindow(3, 0) == masks.SlidingWindow(left=3, right=0)
    assert masks.SlidingWindow(3) != masks.SlidingWindow(3, 0)
    assert masks.Causal() & masks.Sinks(1) == masks.Causal() & masks.Sinks(1)
    assert masks.Causal() & masks.Sinks(1) != masks.Causal() | masks.Sinks(1)
    assert masks.Chunked(3) != masks.BlockCausal(3)
    assert masks.Sinks(2).replace(count=3) == masks.Sinks(3)
    with pytest.raises(ValueError, match="`count`"):
        masks.Sinks(2).replace(count=-3)
    with pytest.raises(AttributeError):
        masks.Sinks(2).count = 3  # type: ignore[misc]


def test_prints_what_it_is():
    assert repr(masks.Causal() & ~masks.SlidingWindow(3)) == (
        "And(left=Causal(), right=Not(mask=SlidingWindow(left=3, right=None)))"
    )
    assert repr(masks.Neighborhood((4, 5), 3)) == "Neighborhood(shape=(4, 5), window=(3, 3), dilation=(1, 1))"
    assert "near" in repr(masks.of(near))


def near(q, k):
    return abs(q - k) < 2

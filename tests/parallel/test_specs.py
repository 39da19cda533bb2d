"""Partition specs from declared axes, of every piece and of the arrays of a call."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jattn
from jattn import masks, normalizers, scores, similarities
from jattn.foundation.pieces import Piece, piece
from jattn.foundation.pieces import array as array_field
from jattn.parallel import array_specs, partition_spec, partition_specs

NAMES = dict(batch=("data",), head="model", query="rows", key="columns")
KEY = jax.random.key(0)


def leaves(specs):
    return jax.tree.leaves(specs, is_leaf=lambda node: isinstance(node, P))


CASES = [
    (scores.Bias(jnp.zeros((2, 8, 6, 10))), [P("data", "model", "rows", "columns")]),
    (scores.Bias(jnp.zeros((8, 1, 10))), [P("model", None, "columns")]),
    (scores.Bias(jnp.zeros((1, 1, 6, 10))), [P(None, None, "rows", "columns")]),
    (scores.ALiBi(jnp.ones(8)), [P("model")]),
    (scores.ALiBi(jnp.ones((2, 8))), [P("data", "model")]),
    (scores.RelativeBuckets(jnp.zeros((32, 8))), [P(None, "model")]),
    (normalizers.Softmax(sink=jnp.zeros(8)), [P("model")]),
    (normalizers.Softmax(), []),
    (similarities.Gaussian(jnp.ones(8)), [P("model")]),
    (similarities.Gaussian(0.5), []),
    (masks.SlidingWindow(jnp.arange(1, 9), 0), [P("model")]),
    (masks.SameSegment(np.zeros((2, 6), int), np.zeros((2, 10), int)), [P("data", "rows"), P("data", "columns")]),
    (masks.Lengths(jnp.array([3, 4])), [P("data")]),
    (masks.Blocks(np.ones((8, 2, 2), bool), 4), [P("model", None, None)]),
    (masks.Dense(np.ones((2, 1, 6, 10), bool)), [P("data", None, "rows", "columns")]),
    (jattn.Dropout(0.1, KEY), [P(None)]),
    (jattn.Dropout(0.1, KEY).indexed((2,), 8), [P(None), P("model"), P("data")]),
    (masks.Causal() & ~masks.Lengths(jnp.array([3, 4])), [P("data")]),
    ((scores.ALiBi(jnp.ones(8)), scores.SoftCap(jnp.float32(30.0))), [P("model"), P(None)]),
    (None, []),
]


@pytest.mark.parametrize(("one", "expected"), CASES, ids=lambda item: type(item).__name__)
def test_every_array_by_its_declared_axes(one, expected):
    specs = partition_specs(one, **NAMES)
    assert leaves(specs) == expected
    for spec, leaf in zip(leaves(specs), jax.tree.leaves(one), strict=True):
        assert len(spec) == leaf.ndim
    assert type(specs) is type(one)


@pytest.mark.parametrize(("one", "expected"), CASES, ids=lambda item: type(item).__name__)
def test_nothing_is_split_without_names(one, expected):
    del expected
    assert all(name is None for spec in leaves(partition_specs(one)) for name in spec)


def test_captured_arrays_are_everywhere():
    table = jnp.arange(8) % 2 == 0
    assert leaves(partition_specs(masks.of(lambda q, k: table[k]), **NAMES)) == [P(None)]


def test_axes_out_of_the_usual_order():
    @piece
    class Odd(Piece):
        weight: jax.Array = array_field("key", "own", "head")

    assert leaves(partition_specs(Odd(jnp.zeros((10, 3, 8))), **NAMES)) == [P("columns", None, "model")]


def test_abstract_pieces_and_axes_split_over_two():
    bias = jax.eval_shape(lambda: scores.Bias(jnp.zeros((3, 2, 8, 6, 10))))
    specs = partition_specs(bias, batch=(None, ("data", "more")), head="model")
    assert leaves(specs) == [P(None, ("data", "more"), "model", None, None)]


def test_batch_axes_match_from_the_right():
    assert partition_spec((2, 8), ("head",), batch=("outer", "inner"), head="model") == P("inner", "model")
    assert partition_spec((8,), ("head",), batch=("outer", "inner"), head="model") == P("model")
    assert partition_spec((3, 2, 8), ("head",), batch=("outer", "inner"), head="model") == P("outer", "inner", "model")


def test_arrays_of_a_call():
    specs = array_specs(**NAMES)
    assert specs.query == specs.out == P("data", "rows", "model", None)
    assert specs.key == specs.value == P("data", "columns", "model", None)
    assert specs.query_positions == P("data", "rows")
    assert specs.key_positions == P("data", "columns")
    assert array_specs(head="model").query == P(None, "model", None)


def test_errors_name_the_array():
    with pytest.raises(ValueError, match=r"`batch` must have a mesh axis .*`Bias.values` of shape \(2, 3, 8, 6, 10\)"):
        partition_specs(scores.Bias(jnp.zeros((2, 3, 8, 6, 10))), **NAMES)
    with pytest.raises(ValueError, match=r"`array` must have the axes \[batch..., head, key\]; got shape \(3,\)"):
        partition_spec((3,), ("head", "key"))
    with pytest.raises(ValueError, match=r"`Bias.values` has no axis 'heads' to split; .* \('head', 'key', 'query'\)"):
        partition_spec((3, 4), ("head", "key"), name="Bias.values", heads="model")


SLOPES = scores.ALiBi(jnp.ones(8))


@pytest.mark.parametrize(
    "one", [lambda q, k: k <= q, np.ones(8), "causal", (SLOPES, 1)], ids=["function", "array", "name", "tuple"]
)
def test_what_is_no_piece(one):
    with pytest.raises(ValueError, match=r"`piece` must be a piece, a tuple of pieces, or None; got"):
        partition_specs(one, head="model")


def test_a_list_of_pieces_is_like_a_tuple():
    assert partition_specs([SLOPES, None], head="model") == partition_specs((SLOPES, None), head="model")


@pytest.mark.parametrize("over", [1, ["model"], ("model", None)], ids=str)
@pytest.mark.parametrize("axis", ["head", "query", "key"])
def test_what_is_no_name_of_a_mesh_axis(axis, over):
    for function in (array_specs, functools.partial(partition_specs, SLOPES)):
        with pytest.raises(ValueError, match=rf"`{axis}` must be the name of a mesh axis, a tuple of names, or None"):
            function(**{axis: over})
    with pytest.raises(ValueError, match=rf"`{axis}` must be the name of a mesh axis"):
        partition_spec((3, 4), ("head", "key"), **{axis: over})

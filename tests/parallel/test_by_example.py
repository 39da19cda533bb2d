"""Layers, recurrences and variants on arrays whose examples or heads are split over Explicit mesh axes."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generative_layers import FEATURES, LAYERS, random_parameters
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from recurrences import KINDS, inputs, run
from tiers import rows
from variant_cases import ROWS, is_float

import jattn
from jattn import scores
from jattn.layers import Layer
from jattn.layers.short_convolution import ShortConvolution
from jattn.ops.attention.by_example import by_example
from jattn.variants.gated import Modulation
from jattn.variants.heads import Differential, MultiToken, TalkingHeads
from jattn.variants.low_rank import Linformer, Nystromformer
from jattn.variants.memory import Compressive, Memorizing, MemoryNetwork, TransformerXL
from jattn.variants.pooling import AttentionPooling
from jattn.variants.recurrent.token_shift import TokenShift
from jattn.variants.selection import top_k
from jattn.variants.seq2seq import CoverageAttention, GenerationGate, Location, LuongGlobal, LuongLocal
from jattn.variants.sparse import Longformer
from jattn.variants.structured import Segmentation, SoftParents
from jattn.variants.vision import (
    CBAM,
    AttentionPool,
    AugmentedConvolution,
    CaptioningAttention,
    CoAttention,
    NonLocal,
    SqueezeExcite,
)

EXAMPLES = 8
COLLECTIVES = re.compile(r"(all-gather|all-to-all|collective-permute|reduce-scatter|all-reduce)(?=\()")


def placed(array, *spec, kind=AxisType.Explicit):
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(kind,))
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))


def check(function, split, shared, *, sums: bool, kind=AxisType.Explicit):
    """Values, shardings and collectives of `function(split, shared)`, as of arrays on one device.

    Args:
        function: to a tree of results and one of gradients of `split`, and one of gradients of `shared`.
        split: a tree of arrays that begin with the examples.
        shared: a tree of arrays on all devices.
        sums: whether anything is summed over the devices.
        kind: of the mesh axis.
    """
    want = jax.jit(function)(split, shared)
    given = jax.tree.map(lambda leaf: placed(leaf, "data", kind=kind), split)
    program = jax.jit(function).lower(given, shared).compile()
    got = program(given, shared)
    for have, wish in zip(jax.tree.leaves(got), map(np.asarray, jax.tree.leaves(want)), strict=True):
        np.testing.assert_allclose(
            have, wish, rtol=2e-5, atol=2e-5 * max(1, np.abs(wish).max(initial=0, where=np.isfinite(wish)))
        )
    for leaf in jax.tree.leaves(got[:2]):
        # XLA makes constants, and small numbers of each example, on all devices.
        constant = kind == AxisType.Auto and (leaf.ndim == 1 or len(np.unique(leaf)) < 2)
        assert leaf.shape[:1] != (EXAMPLES,) or constant or leaf.sharding.spec[0] == "data", leaf.sharding
    text = program.as_text()
    found = set(COLLECTIVES.findall(text))
    if kind == AxisType.Auto and " fft(" in text and jax.__version_info__ < (0, 12):
        found -= {"all-gather"}  # XLA there gathers what it transforms
    assert found <= ({"all-reduce"} if sums else set())


def graded(function):
    """Results and gradients of a sum of sines of all of them, as `check` wants them."""

    def everything(split, shared):
        def loss(split, shared):
            out = function(split, shared)
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(out) if is_float(leaf)), out

        graded = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True, allow_int=True)
        (_, out), gradients = graded(split, shared)
        return out, *([leaf for leaf in jax.tree.leaves(one) if is_float(leaf)] for one in gradients)

    return everything


def decoded(layer):
    def run(split, parameters):
        (inputs,) = split
        out, state = layer.prefill(parameters, inputs[:, :-1])
        last, state = layer.step(parameters, inputs[:, -1], state)
        return out, last, state

    return run


over_axes = pytest.mark.parametrize(
    "kind", [AxisType.Explicit, pytest.param(AxisType.Auto, marks=pytest.mark.exhaustive)], ids=["Explicit", "Auto"]
)


@over_axes
@pytest.mark.parametrize("name", rows(LAYERS, ["RetNet"]))
def test_layers(name, kind):
    layer = LAYERS[name]
    given = np.random.default_rng(0).normal(size=(EXAMPLES, 5, FEATURES)).astype(np.float32)
    check(graded(decoded(layer)), (given,), random_parameters(layer), sums=True, kind=kind)


def normal(*shape):
    return np.random.default_rng(sum(shape)).normal(size=(EXAMPLES, *shape)).astype(np.float32)


IMAGES = normal(4, 3, 4)
OTHERS = {
    "Longformer": (Longformer(8, heads=2, reach=3), (normal(9, 8),), {"global_tokens": [0]}),
    "token shift": (TokenShift(8, ("key", "value")), (normal(5, 8),), {}),
    "short convolution": (ShortConvolution(6, 4), (normal(5, 6),), {}),
    "Linformer": (Linformer(8, heads=2, longest=16, projected=4), (normal(9, 8),), {}),
    "Nystromformer": (Nystromformer(8, heads=2, landmarks=4, convolution=3), (normal(9, 8),), {}),
    "squeeze and excitation": (SqueezeExcite(4, 2), (IMAGES,), {}),
    "CBAM": (CBAM(4, 2, 3), (IMAGES,), {}),
    "co-attention": (
        CoAttention(8, 4, heads=2, head_dim=4, first_hidden=8, second_hidden=8),
        (normal(5, 8), normal(3, 4)),
        {},
    ),
    "non-local block": (NonLocal(4, 4, "dot"), (IMAGES,), {}),
    "augmented convolution": (
        AugmentedConvolution(4, 3, 4, 8, attention_channels=4, key_channels=4, heads=2),
        (IMAGES,),
        {},
    ),
    "attention pool": (AttentionPool(4, 3, 4, heads=2, out_features=4), (IMAGES,), {}),
    "multi-token": (MultiToken(8, heads=4, group=2), (normal(9, 8),), {"mask": lambda q, k: k <= q}),
    "talking heads": (TalkingHeads(8, heads=4, softmax_heads=6), (normal(9, 8),), {"mask": lambda q, k: k <= q}),
    "differential": (Differential(8, heads=2, depth=1), (normal(9, 8),), {"mask": lambda q, k: k <= q}),
    "attention pooling": (AttentionPooling(8, hidden=8, queries=3), (normal(9, 8),), {}),
    "Luong, global": (LuongGlobal(8), (normal(5, 8), normal(9, 8)), {}),
    "location": (Location(8, max_length=20), (normal(5, 8), normal(9, 4)), {}),
    "Luong, local": (LuongLocal(8), (normal(5, 8), normal(9, 8)), {"distance": 2.0}),
    "coverage": (CoverageAttention(8, 6, 4), (normal(5, 8), normal(9, 6)), {}),
    "captioning": (CaptioningAttention(8, 6, 4), (normal(5, 8), normal(9, 6)), {}),
    "generation gate": (GenerationGate(8, 8, 4), (normal(5, 8), normal(5, 8), normal(5, 4)), {}),
    "modulation": (Modulation(8, 4, "film"), (normal(5, 8), normal(5, 4)), {}),
    "Memorizing": (Memorizing(8, heads=2, memory_size=16, top_k=4), (normal(5, 8),), {}),
    "Compressive": (Compressive(8, heads=2, memory_len=8, compressed_len=4, rate=2), (normal(6, 8),), {}),
    "memory network": (
        MemoryNetwork(words=20, features=8, hops=3, sentences=4),
        (np.ones((EXAMPLES, 4, 4), np.int32), np.ones((EXAMPLES, 3), np.int32)),
        {},
    ),
    "Transformer-XL": (TransformerXL(8, heads=2, memory_len=4), (normal(5, 8),), {}),
    "soft parents": (SoftParents(8, hidden=4), (normal(5, 8),), {}),
    "segmentation": (Segmentation(8, heads=2, head_dim=4), (normal(5, 8),), {"lengths": 4}),
}


@pytest.mark.exhaustive
@over_axes
@pytest.mark.parametrize("name", rows(OTHERS, ["Memorizing"]))
def test_other_layers(name, kind):
    layer, given, options = OTHERS[name]
    leaves, tree = jax.tree.flatten(layer.init(jax.random.key(0)))
    rng = np.random.default_rng(1)
    parameters = tree.unflatten([leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])
    run = graded(lambda split, parameters: layer(parameters, *split, **options))
    check(run, given, parameters, sums=True, kind=kind)


@pytest.mark.parametrize("form", ["chunked", pytest.param("scan", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("kind", rows(KINDS, ["bonus"]))
def test_heads_of_recurrences(kind, form):
    """Heads over the devices: what each has of its own goes with it, and nothing is exchanged, nor summed."""
    given = inputs(kind, 12, heads=EXAMPLES)
    heads = {name: 0 if name == "bonus" or one.ndim == 1 else 1 for name, one in given.items()}
    turned = {name: np.moveaxis(one, axis, 0) for (name, one), axis in zip(given.items(), heads.values(), strict=True)}

    def everything(split, segments):
        def function(split):
            back = {name: jnp.moveaxis(one, 0, heads[name]) for name, one in split.items()}
            out, state = run(back, implementation=form, segment_ids=segments)
            return jnp.moveaxis(out, -2, 0), state

        out, pull = jax.vjp(function, split)
        return out, *pull(out)

    check(everything, turned, np.repeat([0, 1], [7, 5]), sums=False)


@over_axes
@pytest.mark.parametrize("row", rows(ROWS, ["top-k"], lambda row: row.name))
def test_functions(row, kind):
    sizes = row.size(b=EXAMPLES, q=9, k=row.size()["k"] and 9)
    arrays = row.draw(0, sizes)
    split = {name: one for name, one in arrays.items() if row.shapes[name].startswith("b")}
    shared = {name: one for name, one in arrays.items() if name not in split}
    given = row.given(sizes, False, None)

    def function(split, shared):
        return row.run({**split, **shared}, **given)

    with row.within():
        check(graded(function), split, shared, sums=True, kind=kind)


def on_two(array):
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec("data")))


ROWS_OF_TWO = np.random.default_rng(3).normal(size=(2, 6, 8)).astype(np.float32)
DROPOUT = jattn.Dropout(0.5, np.array([1, 2], np.uint32))
BIAS = np.ones((2, 1, 1, 6), np.float32)


NO_EXAMPLES = {
    "tokens in a list": (Longformer(8, heads=2, reach=3), {"global_tokens": [0, 1, 0, 0, 0, 1]}),
    "indices": (Longformer(8, heads=2, reach=3), {"mask": lambda b, h, q, k: (k + b + h) % 3 > 0}),
    "dropout": (Longformer(8, heads=2, reach=3), {"dropout": DROPOUT}),
    "scores in a list": (Differential(8, heads=2, depth=1), {"scores": [scores.Bias(BIAS)]}),
    "lengths in a list": (Linformer(8, heads=2, longest=16, projected=4), {"lengths": [5, 3]}),
    "two counts": (Compressive(8, heads=2, memory_len=8, compressed_len=4, rate=2), {}),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", rows(NO_EXAMPLES, ["indices"]))
def test_what_is_no_array_of_examples(name):
    """Lists, indices of the whole call, and arrays that are as long as the batch by chance."""
    layer, options = NO_EXAMPLES[name]
    parameters = layer.init(jax.random.key(0))
    run = jax.jit(lambda parameters, inputs: layer(parameters, inputs, **options))
    got, want = run(parameters, on_two(ROWS_OF_TWO)), run(parameters, ROWS_OF_TWO)
    for have, wish in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(have, wish, rtol=1e-5, atol=1e-5)


def test_layers_of_others_see_the_whole_batch():
    class Centered(Layer):
        def parameters(self):
            return {}

        def __call__(self, parameters, inputs):
            return inputs - inputs.mean(0)

    got = Centered()({}, on_two(ROWS_OF_TWO))
    np.testing.assert_allclose(got, ROWS_OF_TWO - ROWS_OF_TWO.mean(0), rtol=1e-5, atol=1e-6)


def test_the_query_decides():
    """Where arrays are split in different ways."""
    mesh = jax.make_mesh((2, 2), ("x", "y"), devices=jax.devices()[:4])
    query, key = (
        jax.device_put(np.ones((2, 4, 2, 8), np.float32), NamedSharding(mesh, PartitionSpec(axis))) for axis in "xy"
    )
    assert jax.jit(lambda query, key: top_k(query, key, key, 2))(query, key).sharding.spec[0] == "x"


@pytest.mark.exhaustive
def test_values_are_checked_outside_of_jit():
    """As those of arrays on one device; and what is checked is traced once more a call, not twice."""
    given = {name: placed(array[None].repeat(EXAMPLES, 0), "data") for name, array in inputs("scalar", 5).items()}
    with pytest.raises(ValueError, match="`log_decay` must be at most 0"):
        run({**given, "log_decay": given["log_decay"] + 9})
    layer = LAYERS["attention"]
    with pytest.raises(ValueError, match="`max_len`"):
        x = placed(np.ones((EXAMPLES, layer.max_len, FEATURES), np.float32), "data")
        parameters = random_parameters(layer)
        layer.step(parameters, x[:, 0], layer.prefill(parameters, x)[1])


def test_numpy_arrays_beside_a_split_state():
    given = {name: array[None].repeat(EXAMPLES, 0) for name, array in inputs("delta", 5).items()}
    state = placed(np.zeros((EXAMPLES, 2, 6, 5), np.float32), "data")
    out, last = run(given, initial_state=state)
    assert "data" in jax.typeof(out).sharding.spec and "data" in jax.typeof(last).sharding.spec
    np.testing.assert_allclose(out, run(given)[0], atol=1e-6)


@pytest.mark.exhaustive
def test_a_new_state_follows_split_tokens():
    """Outside of `jit`, a state that is on no mesh yet is split as the tokens are."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    layer = jattn.layers.MultiHeadAttention(8, 2, mask=jattn.masks.Causal(), rotary=True, implementation="reference")
    parameters = layer.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (8, 3, 8))
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    out, state = layer.prefill(parameters, split, layer.initial_state(parameters, (8,), length=6))
    assert {leaf.sharding.spec[0] for leaf in (out, *jax.tree.leaves(state))} == {"data"}
    np.testing.assert_allclose(out, layer(parameters, x), atol=1e-5)
    remembered = layer.initial_state(parameters, key_inputs=split)
    assert {leaf.sharding.spec[0] for leaf in jax.tree.leaves(remembered)} == {"data"}
    jax.eval_shape(lambda parameters: layer.prefill(parameters, split, state), parameters)  # the arrays are constants


def test_a_layer_with_a_list_and_how_often_it_is_traced():
    @dataclasses.dataclass(frozen=True)
    class Listed:
        sizes: list

    traced = []

    @by_example(x="length dim")
    def total(x, layer):
        traced.append(x.shape)
        return jnp.cumsum(x, -2) * layer.sizes[0]

    x = placed(np.ones((EXAMPLES, 3, 2), np.float32), "data")
    for layer in (Listed([1]), Listed([1]), Listed([2])):
        np.testing.assert_array_equal(np.asarray(total(x, layer))[0, :, 0], np.arange(1, 4) * layer.sizes[0])
    whole, part = (EXAMPLES, 3, 2), (1, 3, 2)
    assert traced.count(part) == 2, "an equal layer runs the same program"
    assert traced.count(whole) == 3, "the values of concrete arrays are checked at every call"
    assert len(traced) == 2 + 3 + 2


def test_calls_are_listed_once_and_whole():
    given = {name: placed(array[None].repeat(EXAMPLES, 0), "data") for name, array in inputs("plain", 5).items()}
    (one,) = jattn.explain_calls(run, given)
    assert f"query ({EXAMPLES}, 5, 2, 6)" in str(one)

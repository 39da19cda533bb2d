"""`jattn.record` and `jattn.recorded`: the weights of every way to attend, beside a call that runs as ever."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from recordings import (
    CAUSAL,
    FEATURES,
    HEADS,
    LAYER,
    LENGTH,
    LINEN,
    LOWER,
    MODEL,
    NAMES,
    PARAMETERS,
    VARIABLES,
    X,
    attend,
    heads,
    masked,
    named_function,
    twice,
)

import jattn
import jattn.linen
import jattn.nnx
from jattn.layers import caches
from jattn.ops.attention import api
from jattn.parallel import Heads
from jattn.variants.heads import Differential
from jattn.variants.sparse import fixed_attention, strided_attention

FUNCTIONS = {
    "attention": (attend, ["attention.0"]),
    "named": (named_function, ["decoder.3.cross"]),
    "several": (twice, ["attention.0", "attention.1"]),
    "named several times": (
        lambda x: (named_function(x), attend(x), named_function(x)),
        ["decoder.3.cross#0", "attention.0", "decoder.3.cross#1"],
    ),
}


@pytest.mark.parametrize("way", FUNCTIONS)
def test_functions(way):
    function, names = FUNCTIONS[way]
    with jattn.record() as seen:
        out = function(X)
    compiled, again = jax.jit(jattn.recorded(function))(X)
    assert list(seen) == list(again) == names
    for name in names:
        np.testing.assert_allclose(seen[name], masked(X, LOWER), atol=1e-6)
        np.testing.assert_allclose(again[name], seen[name], atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, out, function(X))  # attention ran as it does without
    jax.tree.map(np.testing.assert_array_equal, compiled, jax.jit(function)(X))


MODELS = {
    "nnx": (lambda x: MODEL(x), [f"blocks.{i}.{name}" for i in range(2) for name in NAMES]),
    "linen": (lambda x: LINEN.apply(VARIABLES, x), [f"{i}.{name}" for i in ("first", "last") for name in NAMES]),
}


@pytest.mark.parametrize("way", MODELS)
def test_models(way):
    """Names are paths; weights those that the layers themselves give, which other tests compare with the definition."""
    function, names = MODELS[way]
    with jattn.record() as seen:
        out = function(X)
    assert list(seen) == names
    if way == "nnx":
        own = MODEL.blocks[0].own.attention_weights(X)
    else:
        first = {"params": VARIABLES["params"]["first"]["own"]}
        own = jattn.linen.MultiHeadAttention(q_heads=HEADS, mask=CAUSAL).apply(first, X, method="attention_weights")
    np.testing.assert_allclose(seen[names[0]], own, atol=1e-6)
    assert jax.tree.leaves(seen)[1].shape == (2, HEADS, LENGTH, LENGTH) == seen.stack().shape[1:]
    some, few = jattn.recorded(function, layers=[names[4], 0], heads=1, queries=[-1, 2])(X)
    assert list(few) == [names[0], names[4]]
    np.testing.assert_allclose(few[names[4]], seen[names[4]][:, [1]][:, :, [-1, 2]], atol=1e-6)
    np.testing.assert_array_equal(some, out)


def test_flax_weights():
    """What Flax itself sows of the same call."""
    layer = nn.MultiHeadDotProductAttention(HEADS, attention_fn=jattn.linen.attention_fn())
    variables = layer.init(jax.random.key(1), X)
    with jattn.record() as seen:
        _, state = layer.apply(variables, X, sow_weights=True, mutable=["intermediates"])
    np.testing.assert_allclose(seen["attention.0"], state["intermediates"]["attention_weights"][0], atol=1e-6)


PIECES = {
    "mask, grouped heads": dict(mask=CAUSAL),
    "scores, sink": dict(scores=jattn.scores.SoftCap(2.0), normalizer=jattn.normalizers.Softmax(np.float32([0.3, 1]))),
    "sigmoid": dict(normalizer=jattn.normalizers.Sigmoid()),
    "dropout": dict(dropout=jattn.Dropout(0.5, jax.random.key(3)), mask=lambda q, k: q != k),
    "positions": dict(mask=CAUSAL, query_positions=np.array([3, 0, 4, 1, 2]), key_positions=np.array([2, 0, 4, 1, 3])),
    "nothing to attend to": dict(mask=lambda q, k: (q > 1) & (k < 3)),
}


@pytest.mark.parametrize("pieces", PIECES)
def test_weights_times_values_are_the_output(pieces):
    query, value = heads(X), heads(X)[..., :1, :]
    out, seen = jattn.recorded(lambda q, v: jattn.attention(q, v, v, **PIECES[pieces]))(query, value)
    weights = seen["attention.0"]
    np.testing.assert_allclose(np.einsum("bhqk,bkd->bqhd", weights, value[..., 0, :]), out, atol=1e-5)
    few = jattn.recorded(lambda q, v: jattn.attention(q, v, v, **PIECES[pieces]), heads=[1], queries=[3, 0])
    np.testing.assert_allclose(few(query, value)[1]["attention.0"], weights[:, [1]][:, :, [3, 0]], atol=1e-6)


@pytest.mark.parametrize("pattern", [strided_attention, fixed_attention], ids=lambda pattern: pattern.__name__)
def test_weights_of_merged_parts(pattern):
    """Of the whole, in one record, although it runs as partial attention over parts of the keys."""
    value = heads(np.cos(X))
    out, seen = jattn.recorded(lambda x: pattern(x, x, value, 2, scores=jattn.scores.SoftCap(2.0)))(heads(X))
    np.testing.assert_allclose(np.einsum("bhqk,bkhd->bqhd", seen["attention.0"], value), out, atol=1e-5)
    split = jattn.recorded(lambda x: pattern(x, x, value, 2, how="split", mask=lambda q, k: q != k))
    out, seen = split(heads(X))
    np.testing.assert_allclose(np.einsum("bhqk,bkhd->bqhd", seen["attention.0"], value), out, atol=1e-5)


def test_gradients_are_those_of_weights_as_variables():
    """Two layers in float64, the first of grouped heads with a bias and a sink, beside a dense computation."""
    rng = np.random.default_rng(1)
    q, k, v = (rng.normal(size=(2, LENGTH, count, 3)) for count in (2, 1, 1))
    bias, sink = rng.normal(size=(1, 2, LENGTH, LENGTH)), rng.normal(size=2)

    def model(q, k, v, bias, sink):
        first = jattn.attention(
            q, k, v, mask=CAUSAL, scores=jattn.scores.Bias(bias), normalizer=jattn.normalizers.Softmax(sink)
        )
        return jnp.sin(jattn.attention(first, jnp.cos(first), first**2, mask=CAUSAL))

    def dense(added, q, k, v, bias, sink):
        def layer(q, k, v, added, bias, mass):
            scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(3) + bias
            terms = jnp.where(LOWER, jnp.exp(scores), 0)
            weights = terms / (terms.sum(-1, keepdims=True) + mass)
            return jnp.einsum("bhqk,bkhd->bqhd", weights + added, v), weights

        k, v = (jnp.repeat(one, 2, -2) for one in (k, v))
        first, one = layer(q, k, v, added[0], bias, jnp.exp(sink)[:, None, None])
        second, two = layer(first, jnp.cos(first), first**2, added[1], 0, 0)
        return jnp.sin(second)[..., 0, 1].sum(), (one, two)

    with jax.enable_x64(True):
        arrays = [jnp.asarray(one) for one in (q, k, v, bias, sink)]
        zeros = [jnp.zeros((2, 2, LENGTH, LENGTH))] * 2
        want, weights = jax.jit(jax.grad(dense, has_aux=True))(zeros, *arrays)
        run = jattn.recorded(model, gradients=lambda out: out[..., 0, 1].sum())
        out, seen = jax.jit(run)(*arrays)
        few = jattn.recorded(model, gradients=lambda out: out[..., 0, 1].sum(), layers=1, heads=1, queries=[4, 2])
        (chosen,) = few(*arrays)[1].gradients.values()
        np.testing.assert_allclose(out, jax.jit(model)(*arrays), rtol=1e-12)
        for name, one, weight in zip(seen, want, weights, strict=True):
            np.testing.assert_allclose(seen[name], weight, rtol=1e-12, atol=1e-15)
            np.testing.assert_allclose(seen.gradients[name], np.where(LOWER, one, 0), rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(chosen, np.where(LOWER, want[1], 0)[:, [1]][:, :, [4, 2]], rtol=1e-10, atol=1e-14)


def test_gradients_of_a_model_with_state():
    """Its weights drop as in the call itself, and the counters of its random keys stay as they were."""
    layer = jattn.nnx.MultiHeadAttention(FEATURES, HEADS, dropout_rate=0.5, rngs=nnx.Rngs(0))
    before = jax.tree.leaves(nnx.state(layer, nnx.RngCount))
    out, seen = jattn.recorded(layer, gradients=lambda out: out.sum())(X)
    assert jax.tree.leaves(nnx.state(layer, nnx.RngCount)) == before
    assert "with gradients" in repr(seen)
    again, plain = jattn.recorded(layer)(X)
    np.testing.assert_array_equal(out, again)
    np.testing.assert_allclose(seen["attention.0"], plain["attention.0"], atol=1e-6)
    assert (plain["attention.0"] == 0).any()  # what was dropped


def test_costs_nothing_when_nothing_records(monkeypatch):
    def traced(**choice):
        function = jattn.recorded(lambda x: (attend(x), attend(x + 1)), **choice) if choice else lambda x: attend(x)
        return str(jax.make_jaxpr(function)(X))  # of a function traced for the first time

    with monkeypatch.context() as without:
        without.setattr(api, "observed", lambda run, arrays, pieces: run())
        plain = traced()
    assert traced() == plain
    assert traced(layers=1).count("jattn_reverse_mode") == 2 * plain.count("jattn_reverse_mode")
    assert traced(layers=1).count("applied_weights") < traced(layers=[0, 1]).count("applied_weights")
    assert traced() == plain


def stacked(x):
    return jax.lax.scan(lambda carry, one: (carry, jattn.recorded(attend)(one)), 0, x)[1]


THROUGH = {
    "vmap": lambda x: jax.vmap(jattn.recorded(attend))(x),
    "scan": stacked,
    "checkpoint": lambda x: jax.checkpoint(jattn.recorded(attend))(x),
    "grad": lambda x: jax.value_and_grad(jattn.recorded(lambda x: attend(x).sum()), has_aux=True)(x)[0],
    "nnx.jit": lambda x: nnx.jit(jattn.recorded(lambda layer, x: attend(x)))(MODEL.blocks[0], x),
    "a block": lambda x: jax.jit(in_a_block)(x),
    "record within": lambda x: jattn.recorded(lambda x: in_a_block(x)[0])(x),
    "shard_map": lambda x: jax.shard_map(
        jattn.recorded(attend, gradients=lambda out: out.sum()),
        mesh=jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,)),
        in_specs=PartitionSpec("data"),
        out_specs=PartitionSpec("data"),
    )(x),
}


def in_a_block(x):
    with jattn.record() as seen:
        out = attend(x)
    return out, seen


@pytest.mark.parametrize("transformation", THROUGH)
def test_passes_through(transformation):
    _, seen = THROUGH[transformation](X)
    np.testing.assert_allclose(seen["attention.0"].reshape(2, HEADS, LENGTH, LENGTH), masked(X, LOWER), atol=1e-6)


INSIDE = {
    "jit": lambda x: jax.jit(lambda x: attend(x))(x),
    "vmap": lambda x: jax.vmap(attend)(x),
    "grad": jax.grad(lambda x: attend(x).sum()),
    "checkpoint": lambda x: jax.checkpoint(lambda x: attend(x))(x),
    "scan": lambda x: jax.lax.scan(lambda carry, x: (carry, attend(x)), 0, x),
    "while": lambda x: jax.lax.fori_loop(0, 2, lambda i, x: attend(x), x),
    "cond": lambda x: jax.lax.cond(x[0, 0, 0] > 0, attend, jnp.sin, x),
}


@pytest.mark.parametrize("transformation", INSIDE)
@pytest.mark.parametrize("gradients", [False, jnp.sum], ids=["weights", "gradients"])
def test_what_is_transformed_within_is_refused(transformation, gradients):
    def function(x):
        x = attend(x)
        return INSIDE[transformation](jnp.asarray(x))

    with pytest.raises(ValueError, match=r"'attention.1' attended inside of a function that JAX transforms .*recorded"):
        jax.eval_shape(jattn.recorded(function, gradients=gradients), X)
    jax.eval_shape(jattn.recorded(function, layers=0), X)  # but the others record


def test_weights_are_differentiable():
    def loss(q):
        _, seen = jattn.recorded(lambda q: jattn.attention(q, q, q, implementation="reference"))(q)
        return (seen["attention.0"][..., 0] ** 2).sum()

    def want(q):
        return (jattn.attention_weights(q, q)[..., 0] ** 2).sum()

    np.testing.assert_allclose(jax.grad(loss)(heads(X)), jax.grad(want)(heads(X)), atol=1e-6)


@pytest.mark.parametrize("cache", [caches.Contiguous(6), caches.Rolling(6), caches.Paged(4, 3, 2)], ids=repr)
def test_decoding(cache):
    """The last row of the whole call, over the places of the cache."""
    state = LAYER.initial_state(PARAMETERS, (2,), cache=cache)
    if isinstance(cache, caches.Paged):
        pages = caches.PageAllocator(4, 3)
        state = state.with_table(pages.table([pages.allocate(LENGTH) for _ in range(2)], 2))
    _, state = jax.jit(LAYER.prefill)(PARAMETERS, X[:, :-1], state)
    graded = isinstance(cache, caches.Paged)  # whose attention is several calls
    step = jattn.recorded(LAYER.step, gradients=graded and (lambda out: out[0].sum()))
    (out, _), seen = jax.jit(step)(PARAMETERS, X[:, -1], state)
    run = jattn.recorded(LAYER, gradients=graded and (lambda out: out[:, -1].sum()))
    whole, want = jax.jit(run)(PARAMETERS, X)
    np.testing.assert_allclose(out, whole[:, -1], atol=1e-5)
    for got, one in ((seen, want), *([(seen.gradients, want.gradients)] if graded else [])):
        got, one = got["attention.0"], one["attention.0"]
        np.testing.assert_allclose(got, np.pad(one[:, :, -1:], [(0, 0)] * 3 + [(0, 1)]), atol=1e-5)


@pytest.mark.parametrize(
    "kind",
    [pytest.param(AxisType.Auto, marks=pytest.mark.exhaustive), AxisType.Explicit],
    ids=lambda kind: kind.name,
)
def test_split_heads(kind):
    """Weights keep the split of batch and heads."""
    layer = dataclasses.replace(LAYER, kv_heads=2)
    parameters = jax.jit(layer.init)(jax.random.key(0))
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2)
    split = dataclasses.replace(layer, parallel=Heads("model", batch="data", mesh=mesh))

    def loss(out):
        return jnp.sin(out).sum()

    want_out, want = jax.jit(jattn.recorded(layer, gradients=loss))(parameters, X)
    with jax.set_mesh(mesh):
        inputs = jax.device_put(X, NamedSharding(mesh, PartitionSpec("data")))
        out, seen = jax.jit(jattn.recorded(split, gradients=loss))(parameters, inputs)
        _, few = jattn.recorded(split, heads=1, queries=-1)(parameters, inputs)
    np.testing.assert_allclose(out, want_out, atol=1e-5)
    for got, one in ((seen, want), (seen.gradients, want.gradients)):
        assert got["attention.0"].sharding.spec[:2] == ("data", "model")
        np.testing.assert_allclose(got["attention.0"], one["attention.0"], atol=1e-5)
    np.testing.assert_allclose(few["attention.0"], want["attention.0"][:, [1]][:, :, [-1]], atol=1e-5)


def test_split_examples():
    """A layer that runs each device's examples on it, over Explicit axes."""
    layer = Differential(FEATURES, 2, depth=1)
    parameters = layer.init(jax.random.key(0))

    def both(parameters, x):
        return attend(layer(parameters, x))

    run = jattn.recorded(both, heads=1, queries=[0, -1], gradients=lambda out: jnp.sin(out).sum())
    (want_out, want), mesh = run(parameters, X), jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        inputs = jax.device_put(X, NamedSharding(mesh, PartitionSpec("data")))
        out, seen = jax.jit(run)(parameters, inputs)
    np.testing.assert_allclose(out, want_out, atol=1e-5)
    assert list(seen) == list(want) == ["attention.0", "attention.1", "attention.2"]
    for name in seen:
        assert seen[name].sharding.spec[0] == seen.gradients[name].sharding.spec[0] == "data"
        np.testing.assert_allclose(seen[name], want[name], atol=1e-5)
        np.testing.assert_allclose(seen.gradients[name], want.gradients[name], atol=1e-5)


def test_a_variant_of_two_calls():
    layer = jattn.nnx.Layer(Differential(FEATURES, 1, depth=1), rngs=nnx.Rngs(0))

    class Holder(nnx.Module):
        def __init__(self):
            self.inner = layer

        def __call__(self, x):
            return self.inner(x)

    _, seen = jattn.recorded(Holder())(X)
    assert list(seen) == ["inner#0", "inner#1"] == list(jattn.recorded(Holder(), layers="inner")(X)[1])
    assert list(jattn.recorded(Holder(), layers="inner#0")(X)[1]) == ["inner#0"]
    with pytest.raises(KeyError, match="'inner' may be any of inner#0, inner#1"):
        seen["inner"]
    assert seen.stack("inner").shape == (2, 2, 1, LENGTH, LENGTH)

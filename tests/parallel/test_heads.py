"""Heads split over eight emulated devices equal one device, gradients included, with one sum over devices."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tiers import rows

import jattn
from jattn import masks, normalizers, scores, similarities
from jattn.foundation.shard_map import run_on_shards
from jattn.layers import Sizes, multi_head, parameter_shapes, parameter_specs
from jattn.layers.norms import QKNorm
from jattn.layers.parameters import initialize
from jattn.ops.attention.implementations import Tiled
from jattn.parallel import Heads, array_specs, partition_specs

BATCH, LENGTH, Q_HEADS, KV_HEADS, DIM = 2, 12, 16, 8, 4
SMALL_TILES = Tiled(q_tile=4, k_tile=4)
SEGMENTS = np.array([[0] * 5 + [1] * 7, [0] * 9 + [1] * 3])


def make_mesh(shape, kind=AxisType.Auto):
    names = ("model",) if len(shape) == 1 else ("data", "model")
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape))


def strategies(kind=AxisType.Auto):
    return {
        "8": Heads("model", mesh=make_mesh((8,), kind)),
        "2x4": Heads("model", batch="data", mesh=make_mesh((2, 4), kind)),
    }


STRATEGIES = strategies()
over_meshes = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def qkv(kv_heads=KV_HEADS):
    q_shape, kv_shape = (BATCH, LENGTH, Q_HEADS, DIM), (BATCH, LENGTH, kv_heads, DIM)
    return draw(*q_shape, seed=1), draw(*kv_shape, seed=2), draw(*kv_shape, seed=3)


PIECES = {
    "causal windows, slopes and sinks, each head its own": lambda a: dict(
        mask=masks.Causal() & masks.SlidingWindow(np.arange(Q_HEADS)),
        scores=scores.ALiBi(jnp.exp(a["head"])),
        normalizer=normalizers.Softmax(a["head"] / 2),
    ),
    "a bias for each pair, a cap, dropout": lambda a: dict(
        scores=(scores.Bias(a["pair"]), scores.SoftCap(jnp.exp(a["one"]))),
        dropout=jattn.Dropout(0.5, jax.random.key(7)),
    ),
    "segments, lengths, functions that hold arrays": lambda a: dict(
        mask=masks.of(lambda q, k: k <= q + jnp.asarray([2, 0, 1])[q % 3])
        & masks.SameSegment(jnp.asarray(SEGMENTS))
        & masks.Lengths(jnp.array([12, 7])),
        scores=scores.of(lambda s, q, k: s + a["captured"][k] * jnp.cos(q - k)),
    ),
    "Gaussian, a table of buckets, positions": lambda a: dict(
        mask=masks.Causal(),
        similarity=similarities.Gaussian(jnp.exp(a["head"])),
        scores=scores.RelativeBuckets(a["table"], max_distance=8),
        query_positions=jnp.arange(LENGTH) + jnp.array([[0], [3]]),
        key_positions=np.arange(LENGTH),
    ),
    "sigmoid": lambda a: dict(normalizer=normalizers.Sigmoid(a["head"]), mask=masks.Causal()),
}
ARRAYS = dict(
    head=draw(Q_HEADS, seed=4) / 4,
    pair=draw(1, Q_HEADS, LENGTH, LENGTH, seed=5),
    one=jnp.ones(()),
    table=draw(8, Q_HEADS, seed=6),
    captured=draw(LENGTH, seed=7),
)


def value_and_gradients(attend, make, arrays, used):
    """The output and the gradients of every array, of a loss that weighs each output differently."""

    def loss(qkv, arrays):
        out = attend(*qkv, **make(arrays))
        return (out * jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)).sum(), out

    (_, out), (of_qkv, of_arrays) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(qkv(), arrays)
    return out, {"query": of_qkv[0], "key": of_qkv[1], "value": of_qkv[2], **{name: of_arrays[name] for name in used}}


def assert_close(got, want):
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5 * max(1.0, float(jnp.abs(want).max())))


class Reads(dict):
    """A dict that remembers which of its items were read."""

    def __init__(self, items):
        super().__init__(items)
        self.read = set()

    def __getitem__(self, name):
        self.read.add(name)
        return super().__getitem__(name)


FIRST = next(iter(PIECES))
RUNS = [*((name, "2x4", SMALL_TILES) for name in PIECES), (FIRST, "8", SMALL_TILES), (FIRST, "2x4", "reference")]


@pytest.mark.parametrize(
    ("name", "mesh", "implementation"),
    [RUNS[0], *(pytest.param(*run, marks=pytest.mark.exhaustive) for run in RUNS[1:])],
)
def test_attention_equals_one_device(name, mesh, implementation):
    used, want, want_gradients = on_one_device(name)
    split = functools.partial(STRATEGIES[mesh].attention, implementation=implementation)
    got, got_gradients = value_and_gradients(split, PIECES[name], ARRAYS, used)
    assert_close(got, want)
    for array, gradient in want_gradients.items():
        assert jnp.abs(gradient).max() > 0, array
        assert_close(got_gradients[array], gradient)


@functools.cache
def on_one_device(name):
    reads = Reads(ARRAYS)
    PIECES[name](reads)
    attend = functools.partial(jattn.attention, implementation="reference")
    return reads.read, *value_and_gradients(attend, PIECES[name], ARRAYS, reads.read)


COLLECTIVES = (
    r"\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast)(?:-start)?\("
)


def collectives(compiled):
    text = compiled.as_text()
    assert text is not None
    return re.findall(COLLECTIVES, text)


@over_meshes
def test_attention_exchanges_nothing_and_keeps_its_sharding(strategy):
    specs = array_specs(batch=strategy.batch or (None,), head="model")
    place = lambda array, spec: jax.device_put(array, NamedSharding(strategy.mesh, spec))  # noqa: E731
    placed = [place(array, spec) for array, spec in zip(qkv(), specs, strict=False)]
    slopes = place(jnp.exp(ARRAYS["head"]), P("model"))
    call = lambda q, k, v, slopes: strategy.attention(q, k, v, scores=scores.ALiBi(slopes))  # noqa: E731
    compiled = jax.jit(call).lower(*placed, slopes).compile()
    assert collectives(compiled) == []
    out = compiled(*placed, slopes)
    assert out.sharding.is_equivalent_to(NamedSharding(strategy.mesh, specs.out), out.ndim)
    shard = out.addressable_shards[0].data.shape
    assert shard == (BATCH // strategy.mesh.shape.get("data", 1), LENGTH, Q_HEADS // strategy.mesh.shape["model"], DIM)


@functools.cache
def parameters():
    shapes = parameter_shapes(Sizes(24, Q_HEADS, KV_HEADS, DIM), use_bias=True, qk_norm=True)
    flat, tree = jax.tree.flatten(shapes, is_leaf=lambda node: hasattr(node, "inputs"))
    keys = jax.random.split(jax.random.key(11), len(flat))
    init = jax.nn.initializers.normal(0.3)

    @jax.jit
    def make(keys):
        return [initialize(init, key, shape, jnp.float32) for key, shape in zip(keys, flat, strict=True)]

    return tree.unflatten(make(keys))


def layer_arguments(arrays):
    return dict(
        mask=masks.Causal() & masks.SameSegment(jnp.asarray(SEGMENTS)),
        scores=scores.ALiBi(jnp.exp(arrays["head"])),
        normalizer=normalizers.Softmax(arrays["head"]),
        rotary=True,
        dropout=jattn.Dropout(0.25, jax.random.key(3)),
    )


@functools.cache
def layer_value_and_gradients(mesh, cross):
    """Of the layer whose heads are split over a mesh, or on one device."""
    x, y = draw(BATCH, LENGTH, 24, seed=8), draw(BATCH, LENGTH, 24, seed=9)

    def loss(parameters, x, y, arrays):
        sources = (x, y) if cross else (x,)
        out = multi_head(parameters, *sources, **layer_arguments(arrays), parallel=mesh and STRATEGIES[mesh])
        return (out * jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)).sum(), out

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))(parameters(), x, y, ARRAYS)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("mesh", "cross"),
    [("2x4", True), *(pytest.param(one, False, marks=pytest.mark.exhaustive) for one in ("8", "2x4"))],
)
def test_multi_head_equals_one_device(mesh, cross):
    (_, want), want_gradients = layer_value_and_gradients(None, cross)
    (_, got), got_gradients = layer_value_and_gradients(mesh, cross)
    assert_close(got, want)
    jax.tree.map(assert_close, got_gradients, want_gradients)
    assert jnp.abs(got_gradients[3]["head"]).min() > 0
    assert (jnp.abs(got_gradients[2]).max() > 0) == cross


@pytest.mark.parametrize("name", rows(STRATEGIES, ["2x4"]))
def test_multi_head_has_one_all_reduce_and_the_sharding_stated(name):
    strategy = STRATEGIES[name]
    named = functools.partial(NamedSharding, strategy.mesh)
    placed = jax.tree.map(
        lambda array, spec: jax.device_put(array, named(spec)),
        parameters(),
        parameter_specs(parameters(), head="model"),
    )
    x_spec = P(*(strategy.batch_axes(1)), None, None)
    x = jax.device_put(draw(BATCH, LENGTH, 24, seed=8), named(x_spec))
    pieces = scores.ALiBi(jnp.exp(ARRAYS["head"])), normalizers.Softmax(ARRAYS["head"])
    pieces = jax.tree.map(
        lambda array, spec: jax.device_put(array, named(spec)), pieces, partition_specs(pieces, head="model")
    )

    def layer(parameters, x, pieces):
        score, normalizer = pieces
        return multi_head(
            parameters, x, mask=masks.Causal(), scores=score, normalizer=normalizer, rotary=True, parallel=strategy
        )

    compiled = jax.jit(layer).lower(placed, x, pieces).compile()
    assert collectives(compiled) == ["all-reduce"]
    out = compiled(placed, x, pieces)
    assert out.sharding.is_equivalent_to(named(x_spec), 3)
    gradients = jax.jit(jax.grad(lambda *a: layer(*a).sum(), (0, 1, 2)))(placed, x, pieces)
    for gradient, array in zip(jax.tree.leaves(gradients), jax.tree.leaves((placed, x, pieces)), strict=True):
        assert gradient.sharding.is_equivalent_to(array.sharding, array.ndim)


@pytest.mark.exhaustive
def test_dropout_does_not_depend_on_the_mesh():
    arguments: dict[str, Any] = dict(mask=masks.Causal(), dropout=jattn.Dropout(0.5, jax.random.key(1)))

    @jax.jit
    def alone(*arrays):
        return jattn.attention(*arrays, **arguments), jattn.attention(*arrays, mask=masks.Causal())

    want, kept = alone(*qkv())
    for strategy in STRATEGIES.values():
        assert_close(np.asarray(jax.jit(functools.partial(strategy.attention, **arguments))(*qkv())), want)
    assert jnp.abs(want - kept).max() > 0.1


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [pytest.param("8", marks=pytest.mark.exhaustive), "2x4"])
def test_explicit_axes_and_eager_calls(name):
    strategy = strategies(AxisType.Explicit)[name]
    arguments: dict[str, Any] = dict(mask=masks.Causal(), scores=scores.ALiBi(jnp.exp(ARRAYS["head"])))
    out = strategy.attention(*qkv(), **arguments)
    assert_close(np.asarray(out), np.asarray(jattn.attention(*qkv(), **arguments)))
    x = draw(BATCH, LENGTH, 24)
    layer = jax.jit(lambda parameters, x: multi_head(parameters, x, parallel=strategy))
    assert_close(np.asarray(layer(parameters(), x)), np.asarray(multi_head(parameters(), x)))


def test_the_mesh_of_the_context():
    want = jattn.attention(*qkv(), mask=masks.Causal())
    with jax.set_mesh(make_mesh((2, 4))):
        got = jax.jit(functools.partial(Heads("model", batch="data").attention, mask=masks.Causal()))(*qkv())
    assert_close(np.asarray(got), np.asarray(want))


@pytest.mark.exhaustive
def test_no_batch_axis_and_two():
    query, key, value = qkv()
    mesh = make_mesh((2, 4))
    want = jattn.attention(query, key, value)
    got = Heads("model", mesh=mesh).attention(query[0], key[0], value[0])
    assert_close(got, want[0])
    two = [array.reshape(1, BATCH, *array.shape[1:]) for array in (query, key, value)]
    assert_close(Heads("model", batch=(None, "data"), mesh=mesh).attention(*two), want[None])


def test_what_is_known_stays_known():
    seen = []

    def look(array, known, split):
        seen.append((type(known), type(split)))
        return array

    run_on_shards(
        look,
        (jnp.ones(8), np.arange(3), np.arange(8)),
        (P("model"), P(None), P("model")),
        P("model"),
        mesh=make_mesh((8,)),
    )
    assert seen[0][0] is np.ndarray
    assert not issubclass(seen[0][1], np.ndarray)


@pytest.mark.parametrize("kv_heads", [2, pytest.param(6, marks=pytest.mark.exhaustive)])  # one for a device; several
def test_fewer_key_heads_than_devices(kv_heads):
    """Every device projects the key heads that its query heads need."""
    shapes = parameter_shapes(Sizes(8, 12, kv_heads, DIM), use_bias=True, qk_norm=QKNorm(over="heads"))
    flat, tree = jax.tree.flatten(shapes, is_leaf=lambda node: hasattr(node, "inputs"))
    given = tree.unflatten([draw(*one.shape, seed=i) for i, one in enumerate(flat)])
    x = draw(BATCH, LENGTH, 8)

    def run(parallel):
        def loss(parameters, x):
            out = multi_head(parameters, x, rotary=True, qk_norm=QKNorm(over="heads"), parallel=parallel)
            return (out * jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)).sum()

        return jax.jit(jax.value_and_grad(loss, (0, 1)))

    split = run(STRATEGIES["2x4"])
    jax.tree.map(assert_close, split(given, x), run(None)(given, x))
    assert set(collectives(split.lower(given, x).compile())) == {"all-reduce"}
    query, key, value = qkv(kv_heads=2)
    assert_close(STRATEGIES["2x4"].attention(query, key, value), jattn.attention(query, key, value))


def test_bad_input():
    strategy = STRATEGIES["2x4"]
    query, key, value = qkv()
    with pytest.raises(ValueError, match=r"`q_heads` must be a multiple of the 4 devices on mesh axis 'model'.* got 6"):
        strategy.attention(query[..., :6, :], key[..., :2, :], value[..., :2, :])
    with pytest.raises(ValueError, match=r"batch axis 0 of `query` must be a multiple of the 2 devices .* got size 1"):
        strategy.attention(query[:1], key[:1], value[:1])
    with pytest.raises(ValueError, match=r"`mesh` must have an axis 'heads'; its axes are \('data', 'model'\)"):
        Heads("heads", mesh=strategy.mesh).attention(query, key, value)
    with pytest.raises(ValueError, match="must name different mesh axes"):
        Heads("model", batch="model", mesh=strategy.mesh).attention(query, key, value)
    with pytest.raises(ValueError, match=r"`batch` must name a mesh axis .* each of the 0 batch axes"):
        strategy.attention(query[0], key[0], value[0])
    with pytest.raises(ValueError, match="`mesh` must be given"):
        Heads("model").attention(query, key, value)
    with pytest.raises(ValueError, match=r"`ALiBi.slopes` of shape \(5,\) .* the call has 16"):
        strategy.attention(query, key, value, scores=scores.ALiBi(jnp.ones(5)))
    with pytest.raises(ValueError, match=r"q_len 11 differs from kv_len 12"):
        strategy.attention(query[:, :11], key, value, mask=masks.Causal())


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "kind", [AxisType.Auto, pytest.param(AxisType.Explicit, marks=pytest.mark.exhaustive)], ids=["auto", "explicit"]
)
def test_the_batch_alone(kind):
    strategy = Heads(None, batch="data", mesh=make_mesh((2, 4), kind))
    arguments: dict[str, Any] = dict(
        mask=masks.Causal() & masks.Lengths(np.array([5, 12])), dropout=jattn.Dropout(0.5, jax.random.key(1))
    )
    out: Any = strategy.attention(*qkv(), **arguments)
    assert_close(np.asarray(out), np.asarray(jattn.attention(*qkv(), **arguments)))
    assert out.sharding.spec[0] == "data"
    x = draw(BATCH, LENGTH, 24)
    layer = jax.jit(lambda parameters, x: multi_head(parameters, x, parallel=strategy))
    assert_close(np.asarray(layer(parameters(), x)), np.asarray(multi_head(parameters(), x)))
    for batch in ((), (None,)):
        with pytest.raises(ValueError, match=r"`axis` must be .*Heads\(None, batch='data'\).* got axis None and batch"):
            Heads(None, batch=batch, mesh=strategy.mesh)

"""Arrays split over a mesh: values and gradients of one device, split like their arrays, without communication."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tiers import rows

import jattn
import jattn.linen
import jattn.nnx
from jattn import masks, normalizers, scores
from jattn.layers import CausalAttention, attention_fn
from jattn.ops.attention.implementations import Tiled

BATCH, LENGTH, HEADS, DIM = 8, 32, 16, 8
CHUNKED = Tiled(q_tile=16, k_tile=16)
E, A = AxisType.Explicit, AxisType.Auto
KEY = np.array([1, 2], np.uint32)
WINDOWS = np.arange(3, 3 + HEADS)
SEGMENTS = np.sort(np.random.default_rng(5).integers(0, 3, (BATCH, LENGTH)), 1)

MESHES = {
    "E": ((8,), ("x",), (E,)),
    "A": ((8,), ("x",), (A,)),
    "EE": ((4, 2), ("x", "y"), (E, E)),
    "AA": ((4, 2), ("x", "y"), (A, A)),
    "EA": ((4, 2), ("x", "y"), (E, A)),
    "AE": ((4, 2), ("x", "y"), (A, E)),
}
BATCHES, BY_HEADS = P("x"), P(None, None, "x")
BOTH, TWO_AXES, HEADS_OVER_TWO = P("x", None, "y"), P(("x", "y")), P(None, None, ("x", "y"))

# What a call takes beside query, key and value, from arrays that ride on the batch, on heads, on both, on none.
PIECES = {
    "causal": lambda a: dict(mask=masks.Causal()),
    "slopes, sinks, windows of heads": lambda a: dict(
        mask=masks.Causal() & masks.SlidingWindow(WINDOWS),
        scores=scores.ALiBi(a["head"]),
        normalizer=normalizers.Softmax(a["head"]),
    ),
    "segments, lengths": lambda a: dict(
        mask=masks.SameSegment(a["segments"]) & masks.Lengths(a["lengths"]),
        scores=scores.SoftCap(a["one"]),
    ),
    "bias, dropout": lambda a: dict(scores=scores.Bias(a["bias"]), dropout=jattn.Dropout(0.5, a["key"])),
}


def arrays(kv_heads):
    """Query, key and value, the arrays of the pieces, and what the output and its lse are multiplied with."""
    draw = np.random.default_rng(0).standard_normal
    shapes = [(BATCH, LENGTH, heads, DIM) for heads in (HEADS, kv_heads, kv_heads)]
    qkv = [draw(shape).astype(np.float32) for shape in shapes]
    given = dict(
        head=np.abs(draw(HEADS)).astype(np.float32) / 4,
        one=np.float32(3),
        bias=draw((BATCH, HEADS, 1, LENGTH)).astype(np.float32),
        segments=SEGMENTS,
        lengths=np.arange(BATCH) * 4 + 4,
        key=KEY,
    )
    return qkv, given, draw((BATCH, LENGTH, HEADS, DIM)).astype(np.float32)


FLOATS = dict(zip(PIECES, ((), ("head",), ("one",), ("bias",)), strict=True))
AXES = {"head": (2,), "bias": (0, 2, None, None), "segments": (0, None), "lengths": (0,)}  # as the axes of a query


def program(name, implementation, vmapped=False):
    """The output, and the gradients of query, key, value and of the arrays, with a cotangent of the lse."""

    def one(qkv, given, weight):
        def attend(qkv, some):
            pieces = PIECES[name]({**given, **some})
            if "normalizer" in pieces:  # partial results with a sink do not merge
                return jattn.attention(*qkv, **pieces, implementation=implementation)
            return tuple(jattn.partial_attention(*qkv, **pieces, implementation=implementation))

        out, pull = jax.vjp(attend, qkv, {key: given[key] for key in FLOATS[name]})
        return out, pull((weight, jnp.cos(weight.sum(-1))) if isinstance(out, tuple) else weight)

    if not vmapped:
        return one
    mapped = {key: 0 if AXES.get(key, (None,))[0] == 0 else None for key in ("head", *AXES, "one", "key")}
    return jax.vmap(one, in_axes=(0, mapped, 0))


@functools.cache
def on_one_device(name, kv_heads, vmapped=False):
    return jax.tree.map(np.asarray, jax.jit(program(name, "reference", vmapped))(*arrays(kv_heads)))


def placed(mesh, spec, kv_heads, split_pieces=True):
    whole = tuple(spec) + (None,) * (4 - len(spec))
    size = lambda over: int(np.prod([mesh.shape[n] for n in ((over,) if isinstance(over, str) else over or ())]))  # noqa: E731

    def place(array, axes):
        over = (None if axis is None else whole[axis] for axis in axes)
        fits = [name if np.shape(array)[i] % size(name) == 0 else None for i, name in enumerate(over)]
        return jax.device_put(array, NamedSharding(mesh, P(*fits)))

    qkv, given, weight = arrays(kv_heads)
    given = {key: place(item, AXES.get(key, ()) if split_pieces else ()) for key, item in given.items()}
    return [place(array, range(4)) for array in qkv], given, place(weight, range(4))


COLLECTIVES = (
    r"= (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast)(?:-start)?\("
)


def exchanged(compiled):
    return [f"{kind} {shape}" for shape, kind in re.findall(COLLECTIVES, compiled.as_text())]


def check(types, spec, name, implementation, kv_heads, *, context=False, vmapped=False, split_pieces=True, free=True):
    shape, names, kinds = MESHES[types]
    mesh = jax.make_mesh(shape, names, axis_types=kinds)
    given = placed(mesh, spec, kv_heads, split_pieces)
    with jax.set_mesh(mesh) if context else jax.sharding.use_abstract_mesh(jax.sharding.get_abstract_mesh()):
        compiled = jax.jit(program(name, implementation, vmapped)).lower(*given).compile()
        got = compiled(*given)
    want = on_one_device(name, kv_heads, vmapped)
    for have, wish in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(have, wish, rtol=2e-5, atol=2e-5 * max(1, np.abs(wish[np.isfinite(wish)]).max()))
    out, (of_qkv, of_given) = got
    out = out[0] if isinstance(out, tuple) else out
    like = [
        (out, given[0][0]),
        *zip(of_qkv, given[0], strict=True),
        *((of_given[key], given[1][key]) for key in of_given),
    ]
    for have, array in like:
        if (free and not vmapped) or (have is out and E in kinds):
            assert have.sharding.is_equivalent_to(array.sharding, have.ndim), (have.sharding, array.sharding)
    found = exchanged(compiled)
    # Gradients of what devices share are summed; XLA may also gather those of key heads fewer than the devices.
    may = "all-reduce|all-gather" if kv_heads < 8 and A in kinds else "all-reduce"
    assert not free or all(re.match(may, one) for one in found), found
    return found


CAUSAL, HEAD_PIECES, BATCH_PIECES, DROPOUT = PIECES
TABLE = [
    ("E", BATCHES, CAUSAL, CHUNKED, 16),
    ("E", BY_HEADS, HEAD_PIECES, CHUNKED, 2),  # fewer key heads than devices
    ("EE", BOTH, DROPOUT, CHUNKED, 16),
    ("A", BY_HEADS, HEAD_PIECES, "reference", 8),
]
CALLS = [
    (types, spec, name)
    for types in MESHES
    for spec in ((BATCHES, BY_HEADS) if len(types) == 1 else (BOTH, TWO_AXES, HEADS_OVER_TWO))
    if len(set(types)) == 1 or spec is BOTH  # an axis over an Explicit and an Auto mesh axis: JAX exchanges
    for name in PIECES
]
HOW = [(implementation, kv_heads) for kv_heads in (16, 8, 2) for implementation in (CHUNKED, "reference", CHUNKED)]
# Each call in one way; five is prime to the nine ways, so that all come about as often.
WIDE = [
    ("A", BATCHES, HEAD_PIECES, CHUNKED, 16),
    ("AA", BOTH, DROPOUT, CHUNKED, 4),
    ("E", BATCHES, BATCH_PIECES, "reference", 16),
]
WIDE += [(*call, *HOW[5 * i % len(HOW)]) for i, call in enumerate(CALLS)]


@pytest.mark.parametrize("row", [*TABLE, *(pytest.param(row, marks=pytest.mark.exhaustive) for row in WIDE)], ids=str)
def test_values_gradients_shardings_and_collectives(row):
    types, spec, name, implementation, kv_heads = row
    found = check(types, spec, name, implementation, kv_heads)
    by_batch, by_heads = spec in (BATCHES, BOTH, TWO_AXES), spec in (BY_HEADS, BOTH, HEADS_OVER_TWO)
    shared = {CAUSAL: False, HEAD_PIECES: by_batch, BATCH_PIECES: True, DROPOUT: False}[name]
    devices = 2 if spec == BOTH else 8
    assert bool(found) == (shared or (by_heads and kv_heads < devices)), found


MORE = [
    ("E", BATCHES, CAUSAL, CHUNKED, dict(context=True)),
    ("E", BATCHES, DROPOUT, CHUNKED, dict(split_pieces=False, free=False)),  # arrays on all devices, of what is split
    ("E", BATCHES, HEAD_PIECES, CHUNKED, dict(vmapped=True)),
    ("A", BATCHES, HEAD_PIECES, CHUNKED, dict(vmapped=True)),
    ("E", BATCHES, CAUSAL, "reference", dict(vmapped=True)),
    ("EE", BOTH, CAUSAL, CHUNKED, dict(vmapped=True, free=jax.__version_info__ > (0, 11))),  # before, `vmap` gathers
    ("E", P(None, "x"), CAUSAL, CHUNKED, dict(free=False)),
    ("A", P(None, "x"), CAUSAL, CHUNKED, dict(free=False)),
    ("E", P(None, None, None, "x"), CAUSAL, "reference", dict(free=False)),
]
SOME = (2,)  # rows that run always


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "row",
    [row if i in SOME else pytest.param(row, marks=pytest.mark.exhaustive) for i, row in enumerate(MORE)],
    ids=str,
)
def test_other_ways(row):
    """A mesh in the context, pieces that are not split, `vmap` over what is split, lengths and features split."""
    types, spec, name, implementation, how = row
    check(types, spec, name, implementation, 16, **how)


@pytest.mark.exhaustive
@pytest.mark.parametrize("implementation", [CHUNKED, pytest.param("reference", marks=pytest.mark.exhaustive)], ids=str)
def test_outside_of_jit(implementation):
    qkv, _, _ = arrays(16)
    mesh = jax.make_mesh((8,), ("x",))
    call = functools.partial(jattn.attention, mask=masks.Causal(), implementation=implementation)
    split = [jax.device_put(array, NamedSharding(mesh, BATCHES)) for array in qkv]
    out = call(*split)
    np.testing.assert_allclose(out, call(*map(jnp.asarray, qkv)), atol=1e-5)
    assert out.sharding.is_equivalent_to(split[0].sharding, 4)
    (gradient,) = jax.vjp(lambda query: call(query, *split[1:]), split[0])[1](split[0])
    assert gradient.sharding.is_equivalent_to(split[0].sharding, 4)


@pytest.mark.exhaustive
def test_weights_stay_split_and_some_heads_are_taken_from_all():
    (query, key, _), _, _ = arrays(16)
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    split = [jax.device_put(array, NamedSharding(mesh, BOTH)) for array in (query, key)]
    weights: Any = functools.partial(jattn.attention_weights, mask=masks.Causal())
    got = weights(*split)
    np.testing.assert_allclose(got, weights(query, key), atol=1e-6)
    assert got.sharding.spec == P("x", "y", None, None)
    some = dict(heads=[1, 9], queries=[3])
    np.testing.assert_allclose(weights(*split, **some), weights(query, key, **some), atol=1e-6)


@pytest.mark.exhaustive
def test_manual_axes():
    """In a `shard_map` written by hand a device attends with its part; dropout must be told which that is."""
    qkv, _, _ = arrays(16)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(A,))
    drop = jattn.Dropout(0.5, jnp.asarray(KEY))
    elements = np.arange(BATCH, dtype=np.uint32)

    def run(dropout_of, check_vma=True):
        def local(query, key, value, examples):
            return jattn.attention(query, key, value, mask=masks.Causal(), dropout=dropout_of(examples))

        whole = jax.shard_map(local, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=check_vma)
        return jax.jit(whole)(*qkv, elements)

    want = jattn.attention(*map(jnp.asarray, qkv), mask=masks.Causal(), dropout=drop)
    got = run(lambda examples: drop.replace(examples=examples, heads=np.arange(HEADS, dtype=np.uint32)))
    np.testing.assert_allclose(got, want, atol=1e-5)
    refused = r"`dropout` .*along the mesh axes \('x',\).*heads=\.\.\., examples=\.\.\."
    for check_vma in (True, False):
        with pytest.raises(ValueError, match=refused):
            run(lambda examples: drop, check_vma)
    own_keys = run(lambda examples: drop.replace(key=drop.key + examples[:1]))
    assert np.abs(own_keys - want).max() > 0.1


def test_explain_says_what_is_gathered():
    (query, key, value), _, _ = arrays(16)
    for kind in (E, A):
        mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
        place = lambda array, *spec: jax.device_put(array, NamedSharding(mesh, P(*spec)))  # noqa: E731, B023
        kept = jattn.explain(place(query, "x"), place(key, "x"), place(value, "x"), mask=masks.Causal())
        assert kept.gathered == ()
        found = jattn.explain(place(query, "x"), place(key, None, "x"), place(value, "x"), mask=masks.Causal())
        assert found.gathered == ("`key` along its length (mesh axes 'x')",)
        assert "gathered on all devices before it runs: `key` along its length" in str(found)
        assert found.plan.states.tolist() == kept.plan.states.tolist()


def test_arrays_that_cannot_be_read_are_never_fetched(monkeypatch):
    """As if they spanned processes: their plan counts as traced, and each equals itself alone."""
    segments = jnp.asarray(SEGMENTS)
    other = jnp.asarray(SEGMENTS)
    monkeypatch.setattr(type(segments), "is_fully_addressable", property(lambda self: False))
    monkeypatch.setattr(type(segments), "__array__", None)
    mask = masks.SameSegment(segments)
    assert mask == masks.SameSegment(segments)
    assert mask != masks.SameSegment(other)
    query = jax.ShapeDtypeStruct((BATCH, LENGTH, HEADS, DIM), "float32")
    assert "decided at run time" in str(jattn.explain(query, query, query, mask=mask))


def layers():
    """Functions of parameters, which are on one device yet, and inputs."""
    nnx_layer = jattn.nnx.MultiHeadAttention(16, 8, kv_heads=4, rotary=True, mask=masks.Causal(), rngs=nnx.Rngs(0))
    graph, state = nnx.split(nnx_layer)
    linen_layer = jattn.linen.MultiHeadAttention(16, 8, mask=masks.Causal())
    causal = CausalAttention(16, 8, max_len=LENGTH)
    draw = np.random.default_rng(1).standard_normal
    shapes = jax.tree.leaves(causal.parameters(), is_leaf=lambda node: hasattr(node, "shape"))
    tree = jax.tree.structure(causal.parameters(), is_leaf=lambda node: hasattr(node, "shape"))
    parameters = tree.unflatten([draw(one.shape).astype(np.float32) / 4 for one in shapes])
    fn = attention_fn(mask=masks.Causal())

    def by_flax(parameters, inputs):
        heads = inputs.reshape(*inputs.shape[:-1], 4, 4)
        return fn(heads, heads, heads * parameters).reshape(inputs.shape)

    return {
        "nnx": (lambda state, x: nnx.merge(graph, state)(x), state),
        "linen": (linen_layer.apply, linen_layer.init(jax.random.key(0), np.zeros((1, LENGTH, 16), np.float32))),
        "attention_fn": (by_flax, np.float32(2)),
        "CausalAttention": (causal, parameters),
    }


@pytest.mark.parametrize("spec", [BATCHES, pytest.param(P(None, "x"), marks=pytest.mark.exhaustive)], ids=str)
@pytest.mark.parametrize("kind", [E, pytest.param(A, marks=pytest.mark.exhaustive)], ids=["Explicit", "Auto"])
@pytest.mark.parametrize("name", rows(["nnx", "linen", "attention_fn", "CausalAttention"], ["nnx"]))
def test_layers(name, kind, spec):
    layer, parameters = layers()[name]
    inputs = np.random.default_rng(0).standard_normal((BATCH, LENGTH, 16)).astype(np.float32)

    @jax.jit
    def run(parameters, inputs):
        out, pull = jax.vjp(layer, parameters, inputs)
        return out, pull(jnp.cos(out))

    split = jax.device_put(inputs, NamedSharding(jax.make_mesh((8,), ("x",), axis_types=(kind,)), spec))
    compiled = run.lower(parameters, split).compile()
    got, want = compiled(parameters, split), run(parameters, inputs)
    for have, wish in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        if jnp.issubdtype(have.dtype, jnp.floating):
            np.testing.assert_allclose(have, wish, rtol=1e-4, atol=1e-4 * max(1, np.abs(wish).max()))
    whole = spec == P(None, "x") and (kind == A or name == "CausalAttention")  # a length that stays whole
    assert whole or got[0].sharding.is_equivalent_to(split.sharding, 3)
    found = exchanged(compiled)
    assert spec != BATCHES or all(one.startswith("all-reduce") for one in found), found
